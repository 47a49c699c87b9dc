// Which parts of a passage an answer repeats word for word: those are marked when it is opened.

export type Span = { text: string; marked: boolean };

const SHORTEST = 12; // characters; shorter agreements mean nothing
const LONGEST = 20_000;

/** Cuts `passage` into spans; a sentence of `answer` that stands in it (spaces aside) is marked. */
export function markQuoted(passage: string, answer: string): Span[] {
  if (passage.length > LONGEST || answer.length > LONGEST) return [{ text: passage, marked: false }];
  const { squeezed, places } = squeeze(passage);
  const marks = new Uint8Array(passage.length);
  for (const sentence of answer.split(/(?<=[.!?])\s+|(?<=[。！？])|\n{2,}/)) {
    const wanted = squeeze(sentence.replace(/\s*\[\d{1,2}\]/g, "").replace(/^["“”'`>*\s-]+|["“”'`*\s]+$/g, "")).squeezed.trim();
    if (wanted.length < (/[\u3400-\u9fff]/.test(wanted) ? 6 : SHORTEST)) continue;
    const at = squeezed.indexOf(wanted);
    if (at >= 0) marks.fill(1, places[at]!, places[at + wanted.length - 1]! + 1);
  }
  const spans: Span[] = [];
  for (let at = 0; at < passage.length; ) {
    let end = at;
    while (end < passage.length && marks[end] === marks[at]) end += 1;
    spans.push({ text: passage.slice(at, end), marked: marks[at] === 1 });
    at = end;
  }
  return spans;
}

function squeeze(text: string): { squeezed: string; places: number[] } {
  const places: number[] = [];
  let squeezed = "";
  for (let at = 0; at < text.length; at += 1) {
    const space = /\s/.test(text[at]!);
    if (space && squeezed.endsWith(" ")) continue;
    squeezed += space ? " " : text[at]!;
    places.push(at);
  }
  return { squeezed, places };
}

/** The passage without a first line that only repeats its title. */
export function body(passage: string, title: string): string {
  const line = passage.split("\n", 1)[0]!;
  return title && line.trim() === title.trim() ? passage.slice(line.length).replace(/^\s*\n/, "") : passage;
}

/** Whether the passage is laid out by spaces (code, doctests), so that its columns matter. */
export function laidOut(passage: string): boolean {
  return /^(?: {4,}\S|\s*>>> )/m.test(passage);
}
