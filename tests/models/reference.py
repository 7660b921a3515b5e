"""What llama.cpp makes of the same GGUF files: the reference that the imports are held against.

`python -m tests.models.reference SMOLLM2.gguf GEMMA3.gguf` writes the recordings again, where
`llama_cpp` is installed. Nothing of EdgeCortex is used here.

llama.cpp rounds activations to 8 bits where weights are quantized, which moves logits by some
tenths. So each file is run twice: as it is, and as a copy with its weights dequantized to fp32
(and an fp32 KV cache), where both sides compute the same numbers.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
NUM_THREADS = 2
NUM_GREEDY = 48
WINDOW = 768
NUM_WINDOWS = 3

QUESTIONS = [
    "What is the capital of Japan?",
    "How many days are in a week?",
    "What is the chemical symbol for water?",
    "What is the largest planet in the solar system?",
    "Explain in two sentences what photosynthesis is.",
    "What does the Python function len() do?",
]
BEGINNINGS = [
    "Water boils at a temperature of",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5, 6,",
    "import numpy as np\n\ndef mean(values):\n    return",
    "We the People of the United States, in Order to form",
    "Monday, Tuesday, Wednesday,",
]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two before, three after   ",
    "It's what they're saying: we'll see, I'd guess you've DON'T'VE.",
    "one\ntwo\n\nthree\n\n\n\nfour\r\nfive\n \n six\t\tseven\t",
    "1234567890 12.5 3,000,000 0x1F 2024-05-17 ½ ² ٣٤ Ⅷ",
    "for (int i = 0; i < n; ++i) {\n        a[i] += b[i] * 2;  // sum\n}\n",
    "\tdef f(self, *args, **kwargs):\n\t\treturn {k: v for k, v in kwargs.items()}\n",
    "<table><tr><td>cell</td></tr></table> <h1>Title</h1> <b>bold",
    "https://example.org/path?query=a%20b&c=d#e_f-g user@example.com",
    "naïve café Ångström Straße façade ǅ ﬁ e\u0301 n\u0303",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "敏捷的棕色狐狸跳过了懒狗。すばやい茶色の狐。다람쥐 헌 쳇바퀴에 타고파.",
    "أهلاً وسهلاً بكم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ ✈",
    "𒀀𒁀 𐍈 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ꙮ \u200b\u200d\ufeff \u00a0 \u3000 \u0085x \x00 \x07",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + " " * 70 + "b" + "\n" * 40 + "c",
    "!!!???...;;;:::---___===+++***&&&^^^%%%$$$###@@@~~~```\\\\|||",
    "▁already▁escaped▁ Ġbyte Ċlevel <0x41> <unk",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|> <bos>x<eos>",
    "<start_of_turn>model\nYes<end_of_turn>",
]


def open_llama(path: Path, **options: Any) -> Any:
    from llama_cpp import Llama

    options |= {"n_ctx": 1024, "n_threads": NUM_THREADS, "n_batch": 256}
    return Llama(str(path), logits_all=True, verbose=False, **options)


def write_fp32_copy(path: Path, copy: Path) -> None:
    """The same model with every tensor in fp32."""
    import numpy as np
    from gguf import GGUFReader, GGUFWriter, dequantize

    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(copy, architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = 0 if key == "general.file_type" else field.contents()
            writer.add_key_value(key, value, *field.types[:2])
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokenize(llama: Any, text: str) -> list[int]:
    return list(llama.tokenize(text.encode(), add_bos=False, special=True))


def chat_prompt(question: str) -> str:
    """SmolLM2's template, written out."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def greedy(llama: Any, prompt_ids: list[int], num_tokens: int = NUM_GREEDY) -> dict[str, Any]:
    """Greedy continuation, and by how much each token's logit led the next best."""
    llama.reset()
    llama.eval(prompt_ids)
    ids: list[int] = []
    margins: list[float] = []
    for _ in range(num_tokens):
        logits = llama.scores[llama.n_tokens - 1]
        second, first = sorted(logits.argpartition(-2)[-2:], key=logits.__getitem__)
        ids.append(int(first))
        margins.append(round(float(logits[first] - logits[second]), 3))
        llama.eval([ids[-1]])
    return {"prompt_ids": prompt_ids, "ids": ids, "margins": margins}


def perplexity(llama: Any, windows: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token but each window's first."""
    import numpy as np

    losses: list[float] = []
    for ids in windows:
        llama.reset()
        llama.eval(ids)
        for position, token in enumerate(ids[1:]):
            logits = llama.scores[position].astype(np.float64)
            peak = logits.max()
            losses.append(peak + math.log(np.exp(logits - peak).sum()) - logits[token])
    return math.exp(sum(losses) / len(losses))


def english_windows(llama: Any, bos: int) -> list[list[int]]:
    """Windows of WINDOW tokens of the Python manual, each after a start token."""
    from pydoc_data.topics import topics

    ids = tokenize(llama, "\n".join(topics[name] for name in ("assert", "class", "import")))
    size = WINDOW - 1
    return [[bos, *ids[start : start + size]] for start in range(0, NUM_WINDOWS * size, size)]


PROMPTS: dict[str, tuple[list[str], int | None]] = {
    "smollm2": ([chat_prompt(question) for question in QUESTIONS], None),
    "gemma3": (BEGINNINGS, 2),
}
"""Of each model its prompts, and the start token that stands before them."""


def record(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """All that is compared, of one model; `folder` takes the fp32 copy."""
    prompts, bos = PROMPTS[name]
    start = [] if bos is None else [bos]
    llama = open_llama(path)
    prompt_ids = [start + tokenize(llama, prompt) for prompt in prompts]
    recording = {
        "tokenized": [tokenize(llama, text) for text in TEXTS],
        "greedy": [greedy(llama, ids) for ids in prompt_ids],
    }
    if bos is not None:
        windows = english_windows(llama, bos)
        recording["perplexity"] = {"windows": windows, "value": perplexity(llama, windows)}
    copy = folder / "fp32.gguf"
    write_fp32_copy(path, copy)
    exact = open_llama(copy, type_k=0, type_v=0)
    return recording | {"greedy_fp32": [greedy(exact, ids) for ids in prompt_ids]}


if __name__ == "__main__":
    import tempfile

    import llama_cpp

    for name, file in zip(PROMPTS, sys.argv[1:], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            recording = record(name, Path(file), Path(folder))
        recording = {"llama_cpp_python": llama_cpp.__version__, **recording}
        (DATA / f"{name}.json").write_text(json.dumps(recording) + "\n", "utf-8")
