"""The program that asks llama.cpp about a GGUF file. It runs in a Python of its own, which need not have modelworks.

stdin: {"model": path, "texts": [...], "prompts": [...], "new_tokens": n, "stops": [...], "server": path or null}
stdout, last line: {"engine": its name, "ids": [ids of each text], "answers": [{"ids", "text", "top"} a prompt]}

Every prompt is continued with its likeliest token, one at a time through llama.cpp's cache; "top" has for each of
them the likeliest words and their log-probabilities, [[id, nats], ...]. Keys and values are kept in float32 and no
fused attention is used, so that what differs is the order of sums and llama.cpp's tables of GELU. It reaches
llama.cpp by the package llama_cpp, by the package xllamacpp, or by the command llama-server.
"""

import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

TOP = 10


class Direct:
    """llama-cpp-python: llama.cpp's own functions."""

    def __init__(self, path, room, threads):
        import ctypes

        import llama_cpp

        self.ctypes, self.lib = ctypes, llama_cpp
        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self.quiet = llama_cpp.llama_log_callback(lambda *words: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = room
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0
        self.context = llama_cpp.llama_init_from_model(self.model, settings) if self.model else None
        if not self.context:
            sys.exit(f"llama.cpp cannot open {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.words = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def encode(self, text):
        data = text.encode()
        room = len(data) + 16
        ids = (self.ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, True, False)
        return list(ids[:count])

    def answer(self, prompt, new_tokens, stops):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        out, top, feed, at = [], [], self.encode(prompt), 0
        while len(out) < new_tokens and not (out and out[-1] in stops):
            row = self.feed(feed, at)
            at += len(feed)
            best = sorted(range(self.words), key=row.__getitem__, reverse=True)[:TOP]
            whole = row[best[0]] + math.log(sum(math.exp(x - row[best[0]]) for x in row))
            top.append([[token, row[token] - whole] for token in best])
            out.append(best[0])
            feed = [best[0]]
        return out, top, b"".join(self.piece(token) for token in out if token not in stops)

    def feed(self, ids, at):
        """Run `ids` from position `at` on; the last one's logits."""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, at + i, 1, 0
            batch.logits[i] = i == len(ids) - 1
        if self.lib.llama_decode(self.context, batch):
            sys.exit("llama.cpp could not run the model")
        self.lib.llama_batch_free(batch)
        return self.lib.llama_get_logits_ith(self.context, -1)[: self.words]

    def piece(self, token):
        room = self.ctypes.create_string_buffer(1024)
        size = self.lib.llama_token_to_piece(self.vocab, token, room, 1024, 0, False)
        return room.raw[:size]

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


class Served:
    """llama.cpp's server, at `address`."""

    name = "llama-server"
    address = ""

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)

    def encode(self, text):
        return self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]

    def answer(self, prompt, new_tokens, stops):
        """One token a request: of several the server would join those that are half a character."""
        ids, out, top = self.encode(prompt), [], []
        while len(out) < new_tokens and not (out and out[-1] in stops):
            asked = {"prompt": ids + out, "n_predict": 1, "temperature": 0, "n_probs": TOP, "return_tokens": True}
            found = self.ask("/completion", asked)
            step = (found.get("completion_probabilities") or [{"top_logprobs": []}])[0]  # none for half a character
            top.append([[word["id"], word["logprob"]] for word in step["top_logprobs"]])
            out.append(found["tokens"][0] if found["tokens"] else step["id"])
        text = self.ask("/detokenize", {"tokens": [token for token in out if token not in stops]})["content"]
        return out, top, text.encode()

    def close(self):
        pass


class Embedded(Served):
    """xllamacpp: llama.cpp's server inside this process."""

    def __init__(self, path, room, threads):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = path, room, 1, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.verbosity = -1
        self.server = xllamacpp.Server(settings)
        self.address = self.server.listening_address
        self.name = f"xllamacpp {xllamacpp.__version__}"


class Command(Served):
    """The command llama-server, started for this."""

    def __init__(self, program, path, room, threads):
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [program, "--model", path, "--host", "127.0.0.1", "--port", port, "--ctx-size", str(room)]
        words += ["--parallel", "1", "--threads", str(threads), "--cache-type-k", "f32", "--cache-type-v", "f32"]
        words += ["--flash-attn", "off", "--no-warmup"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                self.ask("/health")
                return
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.close()
        sys.exit(f"{program} cannot open {path}")

    def close(self):
        self.process.terminate()
        self.process.wait()


def opened(asked):
    """The model in whichever llama.cpp there is."""
    room = max((len(text.encode()) for text in asked["prompts"]), default=0) + asked["new_tokens"] + 16
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    if asked.get("server"):
        return Command(asked["server"], asked["model"], room, threads)
    for kind in (Direct, Embedded):
        try:
            return kind(asked["model"], room, threads)
        except ImportError:
            pass
    sys.exit("this Python has neither llama_cpp nor xllamacpp")


def main():
    asked = json.load(sys.stdin)
    model = opened(asked)
    try:
        ids = [model.encode(text) for text in asked["texts"]]
        answers = []
        for prompt in asked["prompts"]:
            out, top, text = model.answer(prompt, asked["new_tokens"], asked["stops"])
            answers.append({"ids": out, "top": top, "text": text.decode("utf-8", "replace")})
        print(json.dumps({"engine": model.name, "ids": ids, "answers": answers}))
    finally:
        model.close()


if __name__ == "__main__":
    main()
