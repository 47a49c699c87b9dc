// A small Markdown reader for text that must be assumed hostile. It turns text into a tree of
// plain data; parts/Markdown.svelte turns the tree into elements and TEXT nodes. Nothing here or
// there ever makes HTML from a string: a tag in the text is shown as the characters it is made of.
//
// Read: paragraphs, headings, lists, quotes, fenced code, doctest blocks, code spans, bold,
// italic, links to http(s). Not read: HTML, images (shown as a link with their description),
// tables, `_` emphasis (it would eat the underscores of `__init__`).
//
// Every search looks at most WINDOW characters ahead and nesting is bounded by DEPTH, so the time
// is linear in the length of the text, whatever the text is.

export type Inline =
  | { kind: "text"; text: string }
  | { kind: "code"; text: string }
  | { kind: "break" }
  | { kind: "strong" | "em"; children: Inline[] }
  | { kind: "link"; href: string; host: string; children: Inline[] }
  | { kind: "cite"; number: number };

export type Block =
  | { kind: "paragraph"; children: Inline[] }
  | { kind: "heading"; level: number; children: Inline[] }
  | { kind: "code"; language: string; text: string }
  | { kind: "quote"; blocks: Block[] }
  | { kind: "list"; ordered: boolean; start: number; items: Block[][] }
  | { kind: "rule" };

const WINDOW = 2000;
const DEPTH = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]{0,24})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>(?!>>) ?/;
const DOCTEST = /^ {0,8}>>> ?/;
const ITEM = /^( {0,12})(?:([-*+])|(\d{1,6})[.)])[ \t]+(?=\S)/;

/** The address, if it is a plain http(s) one without hidden user names; otherwise null. */
export function safeUrl(text: string): URL | null {
  if (!/^https?:\/\/[^\s<>"'`\\\u0000-\u001f]+$/i.test(text)) return null;
  try {
    const url = new URL(text);
    const plain = (url.protocol === "https:" || url.protocol === "http:") && !url.username && !url.password;
    return plain ? url : null;
  } catch {
    return null;
  }
}

/** `citations` is how many passages stand behind the text: `[1]`..`[n]` become marks that open them. */
export function parse(text: string, citations = 0): Block[] {
  return blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), citations, 0);
}

function blocks(lines: string[], citations: number, depth: number): Block[] {
  const found: Block[] = [];
  let at = 0;
  const line = () => lines[at] ?? "";
  while (at < lines.length) {
    if (!line().trim()) {
      at += 1;
      continue;
    }
    const fence = FENCE.exec(line());
    if (fence) {
      const mark = fence[1]!;
      const inside: string[] = [];
      for (at += 1; at < lines.length && !closes(line(), mark); at += 1) inside.push(line());
      at += 1; // a fence that was not closed yet (streaming) holds the rest
      found.push({ kind: "code", language: fence[2] ?? "", text: inside.join("\n") });
      continue;
    }
    if (DOCTEST.test(line())) {
      const inside: string[] = [];
      for (; at < lines.length && line().trim(); at += 1) inside.push(line());
      found.push({ kind: "code", language: "pycon", text: dedent(inside).join("\n") });
      continue;
    }
    const heading = HEADING.exec(line());
    if (heading) {
      const title = heading[2]!.trimEnd().replace(/ #{1,6}$/, "");
      found.push({ kind: "heading", level: heading[1]!.length, children: inline(title, citations) });
      at += 1;
      continue;
    }
    if (RULE.test(line())) {
      found.push({ kind: "rule" });
      at += 1;
      continue;
    }
    if (depth < DEPTH && QUOTE.test(line())) {
      const inside: string[] = [];
      for (; at < lines.length && QUOTE.test(line()); at += 1) inside.push(line().replace(QUOTE, ""));
      found.push({ kind: "quote", blocks: blocks(inside, citations, depth + 1) });
      continue;
    }
    if (depth < DEPTH && ITEM.test(line())) {
      const [list, next] = readList(lines, at, citations, depth);
      found.push(list);
      at = next;
      continue;
    }
    const inside: string[] = [line()];
    for (at += 1; at < lines.length && line().trim() && !interrupts(line(), depth); at += 1) inside.push(line());
    found.push({ kind: "paragraph", children: inline(inside.map((part) => part.trim()).join("\n"), citations) });
  }
  return found;
}

function closes(line: string, mark: string): boolean {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0]!.repeat(text.length);
}

function interrupts(line: string, depth: number): boolean {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || DOCTEST.test(line)) return true;
  return depth < DEPTH && (QUOTE.test(line) || ITEM.test(line));
}

function dedent(lines: string[]): string[] {
  const margin = lines.reduce((least, line) => Math.min(least, line.length - line.trimStart().length), 99);
  return lines.map((line) => line.slice(margin));
}

function readList(lines: string[], from: number, citations: number, depth: number): [Block, number] {
  const first = ITEM.exec(lines[from]!)!;
  const indent = first[1]!.length;
  const ordered = first[2] === undefined;
  const items: string[][] = [];
  let at = from;
  for (; at < lines.length; at += 1) {
    const line = lines[at]!;
    const mark = ITEM.exec(line);
    if (mark && mark[1]!.length <= indent + 1 && mark[1]!.length >= indent - 1 && (mark[2] === undefined) === ordered) {
      items.push([line.slice(mark[0].length)]);
      continue;
    }
    const margin = line.length - line.trimStart().length;
    if (!line.trim()) {
      const next = lines[at + 1] ?? "";
      if (!next.trim() || (!ITEM.test(next) && next.length - next.trimStart().length <= indent)) break;
      items.at(-1)!.push("");
    } else if (margin > indent + 1) {
      items.at(-1)!.push(line.slice(Math.min(margin, indent + (ordered ? 3 : 2))));
    } else if (mark || interrupts(line, depth) || !lines[at - 1]!.trim()) {
      break;
    } else {
      items.at(-1)!.push(line); // a lazy line still belongs to the item above
    }
  }
  const start = ordered ? Number(first[3]) : 1;
  return [{ kind: "list", ordered, start, items: items.map((item) => blocks(item, citations, depth + 1)) }, at];
}

/** Marks inside a line of text. Newlines become line breaks, as people expect in a chat. */
export function inline(text: string, citations = 0, depth = 0, links = true): Inline[] {
  const out: Inline[] = [];
  const unclosed = new Set<number>(); // lengths of backtick runs that nothing closes
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) out.push({ kind: "text", text: plain });
    plain = "";
  };
  const push = (node: Inline, next: number) => {
    flush();
    out.push(node);
    at = next;
  };
  while (at < text.length) {
    const char = text[at]!;
    if (char === "\n") {
      push({ kind: "break" }, at + 1);
    } else if (char === "\\" && /[\\`*[\]()<>#!_~.+-]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1]!;
      at += 2;
    } else if (char === "`") {
      const run = runLength(text, at, "`");
      const end = unclosed.has(run) ? -1 : closingRun(text, at + run, run);
      if (end < 0) {
        unclosed.add(run);
        plain += text.slice(at, at + run);
        at += run;
      } else {
        push({ kind: "code", text: text.slice(at + run, end).replace(/^[ \n](.*\S.*)[ \n]$/s, "$1").replaceAll("\n", " ") }, end + run);
      }
    } else if (char === "*" && depth < DEPTH) {
      const size = Math.min(runLength(text, at, "*"), 2);
      const end = closingStar(text, at + size, size);
      if (end < 0) {
        const run = runLength(text, at, "*");
        plain += text.slice(at, at + run);
        at += run;
      } else {
        const children = inline(text.slice(at + size, end), citations, depth + 1, links);
        push({ kind: size === 2 ? "strong" : "em", children }, end + size);
      }
    } else if (links && (char === "[" || (char === "!" && text[at + 1] === "["))) {
      const found = readBracket(text, at, citations, depth);
      if (found) {
        if (found.node.kind === "cite") plain = plain.trimEnd(); // the mark stands close to its word
        push(found.node, found.next);
      } else {
        plain += char;
        at += 1;
      }
    } else if (links && (char === "h" || char === "H" || char === "<")) {
      const found = readAddress(text, at);
      if (found) {
        push(found.node, found.next);
      } else {
        plain += char;
        at += 1;
      }
    } else {
      plain += char;
      at += 1;
    }
  }
  flush();
  return out;
}

type Found = { node: Inline; next: number } | null;

function runLength(text: string, at: number, char: string): number {
  let end = at;
  while (text[end] === char) end += 1;
  return end - at;
}

function closingRun(text: string, from: number, run: number): number {
  for (let at = from; at < text.length && at < from + WINDOW; ) {
    const next = text.indexOf("`", at);
    if (next < 0) return -1;
    const size = runLength(text, next, "`");
    if (size === run) return next;
    at = next + size;
  }
  return -1;
}

/** Where the emphasis that was opened just before `from` ends: `*args, **kwargs` opens nothing. */
function closingStar(text: string, from: number, size: number): number {
  if (!text[from] || /\s/.test(text[from]!) || (text[from] === "*" && /[*\s]/.test(text[from + 1] ?? " "))) return -1;
  const limit = Math.min(text.length, from + WINDOW);
  for (let at = from; at < limit; at += 1) {
    if (text[at] === "`") {
      const run = runLength(text, at, "`");
      const end = closingRun(text, at + run, run);
      at = end < 0 ? at + run - 1 : end + run - 1;
    } else if (text[at] === "*") {
      const run = runLength(text, at, "*");
      const closing = !/\s/.test(text[at - 1]!) && !/[\p{L}\p{N}]/u.test(after(text, at + run)) && at > from;
      if (closing && run >= size && (size === 2 || run !== 2)) return at + run - size;
      at += run - 1;
    }
  }
  return -1;
}

/** The character after an emphasis; CJK counts as none, for it writes no spaces there. */
function after(text: string, at: number): string {
  const char = text[at] ?? "";
  return /[\u3040-\u9fff\uac00-\ud7af]/.test(char) ? "" : char;
}

/** `[text](https://...)`, `![description](https://...)` and the mark `[2]` of a cited passage. */
function readBracket(text: string, at: number, citations: number, depth: number): Found {
  const image = text[at] === "!";
  const open = at + (image ? 2 : 1);
  const part = text.slice(open, open + WINDOW);
  const mark = image ? null : /^(\d{1,2})\](?!\()/.exec(part);
  if (mark && Number(mark[1]) >= 1 && Number(mark[1]) <= citations) {
    return { node: { kind: "cite", number: Number(mark[1]) }, next: open + mark[0].length };
  }
  const found = /^([^[\]]{0,400})\]\(\s{0,4}<?([^\s()<>]{1,1500}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,200})?)>?\s{0,4}(?:"[^"\n]{0,200}")?\s{0,4}\)/.exec(part);
  const url = found && safeUrl(found[2]!);
  if (!found || !url) return null;
  const children = inline(found[1]! || url.host, 0, depth + 1, false);
  return { node: { kind: "link", href: url.href, host: url.host, children }, next: open + found[0].length };
}

/** A bare address: `https://host/path`, or the same between angle brackets. */
function readAddress(text: string, at: number): Found {
  const part = text.slice(at, at + WINDOW);
  const found = /^<(https?:\/\/[^\s<>]+)>/i.exec(part) ?? /^(https?:\/\/[^\s<>"'`\\*[\]，。；：！？、）】」》]+)/i.exec(part);
  if (!found || (part[0] !== "<" && /[\p{L}\p{N}_]/u.test(text[at - 1] ?? ""))) return null;
  const bare = part[0] === "<" ? found[1]! : found[1]!.replace(/[.,;:!?)]+$/, "");
  const url = safeUrl(bare);
  if (!url) return null;
  const next = at + (part[0] === "<" ? found[0].length : bare.length);
  return { node: { kind: "link", href: url.href, host: "", children: [{ kind: "text", text: bare }] }, next };
}
