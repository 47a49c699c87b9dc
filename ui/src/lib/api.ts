// The server's API as the pages use it. Everything that comes back is checked here, so that the
// rest of the code works with known shapes; every failure becomes a Problem with a kind.

import { events } from "./sse";

export type Model = { id: string; title: string; description: string; examples: string[] };
export type Citation = { id: string; title: string; text: string; source: string };
export type Grounding = "own" | "quoted" | "declined";
export type Message = { role: "user" | "assistant"; content: string };
export type Piece = { text?: string; citations?: Citation[]; grounding?: Grounding; finish?: string };

export type ProblemKind = "unreachable" | "key" | "busy" | "starting" | "refused" | "too_long" | "broken" | "failed";

export class Problem extends Error {
  constructor(
    readonly kind: ProblemKind,
    readonly detail = "",
    readonly retryAfter = 0,
  ) {
    super(detail || kind);
  }
}

const KEY = "modelworks.key"; // sessionStorage: gone with the tab, never written to disk by us

export function hasKey(): boolean {
  return Boolean(sessionStorage.getItem(KEY));
}

export function setKey(key: string): void {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...init, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem("unreachable");
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response: Response): Promise<Problem> {
  const body: unknown = await response.json().catch(() => null);
  const error = record(record(body)?.error) ?? {};
  const detail = text(error.message).slice(0, 300);
  const wait = Number(response.headers.get("retry-after"));
  const retryAfter = Number.isFinite(wait) && wait > 0 ? Math.min(Math.ceil(wait), 600) : 0;
  if (response.status === 401) return new Problem("key", detail);
  if (response.status === 429) return new Problem("busy", detail, retryAfter || 2);
  if (response.status === 503) return new Problem("starting", detail, retryAfter);
  if (text(error.code) === "context_length_exceeded") return new Problem("too_long", detail);
  if (response.status >= 400 && response.status < 500) return new Problem("refused", detail);
  return new Problem("failed", detail);
}

export async function listModels(): Promise<Model[]> {
  const response = await call("v1/models");
  const body = record(await response.json().catch(() => null));
  if (!Array.isArray(body?.data)) throw new Problem("failed");
  return body.data.flatMap((entry: unknown) => {
    const found = record(entry);
    if (!found || !text(found.id)) return [];
    const examples = Array.isArray(found.examples) ? found.examples.map(text).filter(Boolean).slice(0, 6) : [];
    return [{ id: text(found.id), title: text(found.title), description: text(found.description), examples }];
  });
}

/** Streams an answer. Ends normally only when the server said that the answer is whole. */
export async function* chat(model: string, messages: Message[], signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify({ model, messages, stream: true }),
    signal,
  });
  if (!response.body) throw new Problem("broken");
  if (!response.headers.get("content-type")?.includes("event-stream")) {
    yield pieceOf(await response.json().catch(() => null), "message"); // a server that does not stream
    return;
  }
  let whole = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const body: unknown = parsed(data);
      const error = record(record(body)?.error);
      if (error) throw new Problem("failed", text(error.message).slice(0, 300));
      const piece = pieceOf(body, "delta");
      whole ||= Boolean(piece.finish);
      yield piece;
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error;
    throw new Problem("broken");
  }
  if (!whole) throw new Problem("broken");
}

function pieceOf(body: unknown, part: "delta" | "message"): Piece {
  const choices = record(body)?.choices;
  const choice = Array.isArray(choices) ? record(choices[0]) : null;
  const delta = record(choice?.[part]) ?? {};
  const piece: Piece = {};
  if (typeof delta.content === "string") piece.text = delta.content;
  if (Array.isArray(delta.citations)) piece.citations = delta.citations.slice(0, 20).map(citationOf);
  const grounding = delta.grounding;
  if (grounding === "own" || grounding === "quoted" || grounding === "declined") piece.grounding = grounding;
  if (typeof choice?.finish_reason === "string") piece.finish = choice.finish_reason;
  return piece;
}

function citationOf(entry: unknown): Citation {
  const found = record(entry) ?? {};
  return { id: text(found.id), title: text(found.title), text: text(found.text), source: text(found.source) };
}

function parsed(data: string): unknown {
  try {
    return JSON.parse(data);
  } catch {
    throw new Problem("broken");
  }
}

function record(value: unknown): Record<string, unknown> | null {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : null;
}

function text(value: unknown): string {
  return typeof value === "string" ? value : typeof value === "number" ? String(value) : "";
}
