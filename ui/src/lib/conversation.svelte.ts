// The conversation: what was said, the answer on its way, and what went wrong. It lives in memory
// and in sessionStorage (so that a reload keeps it); nothing of it outlives the tab.

import { chat, listModels, Problem, setKey, type Citation, type Grounding, type Message, type Model } from "./api";

export type Note = "stopped" | "length" | "trimmed" | "empty";
export type Turn = {
  question: string;
  answer: string;
  citations: Citation[];
  grounding: Grounding | null;
  notes: Note[];
  state: "waiting" | "writing" | "done" | "stopped" | "failed";
};

const KEPT = "modelworks.conversation";
const FLUSH = 30; // milliseconds between two redraws of a streaming answer, and one more per hundred characters

class Conversation {
  models = $state<Model[]>([]);
  model = $state("");
  turns = $state<Turn[]>([]);
  problem = $state<Problem | null>(null);
  busy = $state(false);
  loaded = $state(false);
  #abort: AbortController | null = null;
  #listing: Promise<void> | null = null;

  constructor() {
    const kept = recall();
    this.turns = kept.turns;
    this.model = kept.model;
  }

  get current(): Model | undefined {
    return this.models.find((model) => model.id === this.model);
  }

  async load(): Promise<void> {
    this.problem = null;
    try {
      await this.#list();
    } catch (error) {
      this.problem = asProblem(error);
    }
  }

  /** Fetches the list of models, once for all who wait for it: a question may be quicker than the list. */
  #list(): Promise<void> {
    this.#listing ??= listModels()
      .then((models) => {
        this.models = models;
        if (!this.current) this.model = models[0]?.id ?? "";
        this.loaded = true;
      })
      .finally(() => (this.#listing = null));
    return this.#listing;
  }

  async ask(question: string): Promise<void> {
    if (this.busy || !question.trim()) return;
    this.turns.push({ question: question.trim(), answer: "", citations: [], grounding: null, notes: [], state: "waiting" });
    this.#keep();
    await this.#answer();
  }

  /** Asks the last question again: after a failure, a stop, or for another answer. */
  async retry(): Promise<void> {
    if (this.busy) return;
    if (!this.loaded) await this.load();
    const turn = this.turns.at(-1);
    if (!turn || this.problem?.kind === "key" || (turn.state === "done" && !this.loaded)) return;
    Object.assign(turn, { answer: "", citations: [], grounding: null, notes: [], state: "waiting" });
    await this.#answer();
  }

  /** After a key was asked for: keep it for this tab, and go on where it was asked. */
  async useKey(key: string): Promise<void> {
    setKey(key);
    await this.load();
    const state = this.turns.at(-1)?.state;
    if (!this.problem && (state === "failed" || state === "waiting")) await this.retry();
  }

  stop(): void {
    this.#abort?.abort();
  }

  clear(): void {
    this.stop();
    this.turns = [];
    this.problem = this.loaded ? null : this.problem;
    this.#keep();
  }

  /** Messages to send; `skip` leaves out that many of the earliest answered turns. */
  #messages(skip: number): Message[] {
    const earlier = this.turns.slice(0, -1).filter((turn) => turn.answer && turn.state === "done");
    const messages = earlier.slice(skip).flatMap<Message>((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ]);
    return [...messages, { role: "user", content: this.turns.at(-1)!.question }];
  }

  async #answer(): Promise<void> {
    const turn = this.turns.at(-1)!;
    const abort = new AbortController();
    this.#abort = abort;
    this.busy = true;
    this.problem = null;
    try {
      if (!this.loaded) await this.#list();
      for (let skip = 0; ; skip += 1) {
        const messages = this.#messages(skip);
        try {
          await this.#stream(turn, messages, abort.signal);
          if (skip) turn.notes.push("trimmed");
          break;
        } catch (error) {
          // the model's window is full: say less of what was said before, and say so
          if (!(error instanceof Problem) || error.kind !== "too_long" || messages.length < 3) throw error;
        }
      }
      turn.state = "done";
      if (!turn.answer.trim()) turn.notes.push("empty");
    } catch (error) {
      if (abort.signal.aborted) {
        turn.state = "stopped";
        turn.notes.push("stopped");
      } else {
        turn.state = "failed";
        if (this.#abort === abort) this.problem = asProblem(error);
      }
    }
    if (this.#abort !== abort) return; // another conversation began meanwhile
    this.#abort = null;
    this.busy = false;
    this.#keep();
  }

  async #stream(turn: Turn, messages: Message[], signal: AbortSignal): Promise<void> {
    let pending = "";
    let timer: ReturnType<typeof setTimeout> | undefined;
    const flush = () => {
      clearTimeout(timer);
      timer = undefined;
      if (!pending) return;
      turn.answer += pending;
      turn.state = "writing";
      pending = "";
    };
    try {
      for await (const piece of chat(this.model, messages, signal)) {
        pending += piece.text ?? "";
        if (piece.citations) turn.citations = piece.citations;
        if (piece.grounding) turn.grounding = piece.grounding;
        if (piece.finish === "length") turn.notes.push("length");
        timer ||= setTimeout(flush, FLUSH + turn.answer.length / 100);
      }
    } finally {
      flush();
    }
  }

  #keep(): void {
    try {
      if (this.turns.length) sessionStorage.setItem(KEPT, JSON.stringify({ model: this.model, turns: this.turns }));
      else sessionStorage.removeItem(KEPT);
    } catch {
      // too large or switched off: memory alone will do
    }
  }
}

/** What this tab kept; anything that is not a whole conversation counts as nothing. */
function recall(): { model: string; turns: Turn[] } {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
    const turns: Turn[] = kept.turns ?? [];
    for (const turn of turns) {
      const whole = typeof turn.question === "string" && typeof turn.answer === "string";
      if (!whole || !Array.isArray(turn.citations) || !Array.isArray(turn.notes)) throw new TypeError();
      if (turn.state === "waiting" || turn.state === "writing") Object.assign(turn, { state: "stopped", notes: ["stopped"] });
    }
    return { model: String(kept.model ?? ""), turns };
  } catch {
    sessionStorage.removeItem(KEPT);
    return { model: "", turns: [] };
  }
}

function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem("failed");
}

export const conversation = new Conversation();
