"""The things compared: what each variant is called, how it is made from a model id, loaded and run.

To add a variant, add a line to VARIANTS; only a new runtime or precision needs more.
"""

import contextlib
import ctypes
import json
import logging
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

import utils
from utils import RunError, UserError, say

RANDOM_MODEL = "random-roberta-base"
DEFAULT_MODEL = "SamLowe/roberta-base-go_emotions"
HUB_TIMEOUT = 10  # seconds
PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Variant:
    """A way of running a model: runtime and precision, compiled or not, as CUDA graphs or not, and where it can run.

    `all_on`: the devices whose `--model all` includes it. `refused`, `notes`: device -> the reason, a plain line.
    """

    runtime: str
    precision: str
    compiled: bool = False
    graphs: bool = False
    all_on: tuple[str, ...] = ("gpu", "cpu")
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def export(self) -> str:
        """The precision of the ONNX export that it reads: OpenVINO rounds the plain one itself."""
        return "fp32" if self.runtime == "openvino" else self.precision

    @property
    def few_shapes(self) -> bool:
        """Whether a GPU prepares each shape of it: captures it, or, in the cuDNN attention that onnxruntime takes in
        FP16 on Hopper and later, plans it.
        """
        return self.graphs or (self.runtime, self.precision) == ("onnx", "fp16")


GRAPHS_ON_CPU = {"cpu": "CUDA graphs are for GPUs"}
VARIANTS = {
    "torch": Variant("torch", "fp32"),
    "torch-compile": Variant("torch", "fp32", compiled=True),
    "torch-fp16": Variant("torch", "fp16", all_on=("gpu",)),
    "torch-compile-fp16": Variant("torch", "fp16", compiled=True, all_on=("gpu",)),
    "torch-bf16": Variant("torch", "bf16"),
    "torch-compile-bf16": Variant("torch", "bf16", compiled=True),
    "onnx": Variant("onnx", "fp32"),
    "onnx-fp16": Variant(
        "onnx",
        "fp16",
        all_on=("gpu",),
        notes={"cpu": "onnxruntime has no FP16 kernels for it on a CPU: it computes in FP32 between casts"},
    ),
    "onnx-fp16-packed": Variant(
        "onnx",
        "fp16-packed",
        all_on=("gpu",),
        refused={"cpu": "onnxruntime has packed attention for CUDA only"},
    ),
    "onnx-int8": Variant(
        "onnx",
        "int8",
        all_on=("cpu",),
        refused={"gpu": "dynamic INT8 quantization has kernels for CPUs only"},
    ),
    "openvino-bf16": Variant("openvino", "bf16", all_on=("cpu",), refused={"gpu": "OpenVINO runs on Intel's devices"}),
    "torch-fp16-graphs": Variant("torch", "fp16", compiled=True, graphs=True, all_on=(), refused=GRAPHS_ON_CPU),
    "onnx-fp16-graphs": Variant("onnx", "fp16", graphs=True, all_on=(), refused=GRAPHS_ON_CPU),
}
TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
EXPORT_SUFFIX = {"fp32": "-onnx", "fp16": "-onnx-fp16", "fp16-packed": "-onnx-fp16-packed", "int8": "-onnx-int8"}
PEAK_PRODUCTS = ((8192, 1024, 4096), (4096, 4096, 4096), (2048, 2048, 2048))  # rows, inner, columns
GPU_PEAK_PRODUCTS = ((8192, 8192, 8192), *PEAK_PRODUCTS)
PEAK_SECONDS = 0.5  # for each of them
INSIDE_BYTES = 2**31 - 2**24  # protobuf's limit of 2 GiB for a file, less room for the graph
# of a fused graph: kinds of node, how many of them for each layer, and what it means if there are fewer
FUSIONS = (
    (
        ("Attention", "MultiHeadAttention", "PackedAttention", "PackedMultiHeadAttention"),
        1,
        "the rest is separate products and a softmax, slower and with more memory",
    ),
    (("SkipLayerNormalization",), 2, "the rest is separate additions and normalizations, slower"),
    (("FastGelu", "Gelu", "BiasGelu"), 1, "the rest is computed in single steps, slower"),
)
TELLING = re.compile("MatMul|Gemm|Attention|Norm|Gelu|Quant")  # kinds of node that say how a graph computes
PUBLISHED_EXPORTS = {
    (DEFAULT_MODEL, "fp32"): ("SamLowe/roberta-base-go_emotions-onnx", "onnx/model.onnx"),
    (DEFAULT_MODEL, "fp16"): ("joaopn/roberta-base-go_emotions-onnx-fp16", "model.onnx"),
}


def choose_variants(names: list[str], device: str) -> list[str]:
    """The names asked for, `all` replaced by those that make sense on the device ("gpu" or "cpu"), which leaves
    OpenVINO out where it is not installed or would not compute in BF16.

    Raises UserError for an unknown name, and for one that can't run on the device, with the reason.
    """
    if names == ["all"]:
        found = ["torch", "onnx"] + ["openvino"] * bool(find_spec("openvino") and utils.cpu_has_bf16())
        return [name for name, variant in VARIANTS.items() if device in variant.all_on and variant.runtime in found]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"no variant {name!r}; there are: {', '.join(VARIANTS)}, or all of them as `all`")
        if device in VARIANTS[name].refused:
            raise UserError(f"{name} can't run on a {device}: {VARIANTS[name].refused[device]}")
    return names


# ---------------------------------------------------------------------------------------------- where models come from


def find_model(model_id: str) -> Path:
    """The local folder of a model: `random-roberta-base`, a local folder, or what is downloaded of a Hub id.

    Raises UserError if there is no such model, if it has no sequence-classification head, or if it brings code of its
    own, which is never run.
    """
    if model_id == RANDOM_MODEL:
        return random_roberta_base()
    folder = Path(model_id)
    if not folder.is_dir():
        if folder.exists() or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
            raise UserError(f"no model folder {model_id}")
        folder = download(model_id)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model's folder: it has no config.json")
    config = read_json(folder / "config.json")
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in read_json(file):
            raise UserError(f"{model_id} needs code of its own (auto_map in {file.name}), which is never run here")
    heads = config.get("architectures") or []
    if not isinstance(config.get("model_type"), str) or not isinstance(heads, list):
        # transformers would guess a missing type from the folder's name
        raise UserError(f"{folder}/config.json has no model_type, or its architectures are not a list")
    if heads and not any(str(head).endswith("ForSequenceClassification") for head in heads):
        raise UserError(f"{model_id} has no sequence-classification head, it is a {', '.join(map(str, heads))}")
    return folder


def read_json(file: Path) -> dict:
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {utils.first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} can't be read: it holds a {type(content).__name__}, not an object")
    return content


def load_config(folder: Path):
    """The transformers config of a model's folder; never runs code that a model brings."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each of its fields can be wrong in a way of its own
        raise UserError(f"{folder}/config.json can't be used: {utils.first_line(error)}") from error


def download(repo: str, file: str = "") -> Path:
    """The local folder of a Hub repository: its config, tokenizer and weights, or one `file` with its external data.

    Pickled weights are left out where safetensors are there. Without the Hub, what was downloaded before is used.
    Raises UserError where there is neither.
    """
    import requests
    from huggingface_hub import HfApi, errors, logging, snapshot_download

    logging.set_verbosity_error()  # it prints a page for each of its retries
    ways_on = f"name a local folder or --model-id {RANDOM_MODEL} instead"
    try:
        names = [found.rfilename for found in within(HUB_TIMEOUT, HfApi().model_info, repo).siblings]
        wanted = [name for name in names if name in (file, f"{file}_data")]
        if not file:
            root = [name for name in names if "/" not in name]
            weights = ".safetensors" if any(name.endswith(".safetensors") for name in root) else ".bin"
            wanted = [name for name in root if name.endswith((".json", ".txt", ".model", "README.md", weights))]
        return Path(snapshot_download(repo, allow_patterns=wanted, etag_timeout=HUB_TIMEOUT))
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is neither a local folder nor a Hub id") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated: ask for access on its page, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"no model {repo} on the Hub (or it is private, see `hf auth login`); {ways_on}") from error
    except (requests.RequestException, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, TimeoutError) as error:
        try:
            folder = Path(snapshot_download(repo, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            raise UserError(f"the Hub is out of reach and {repo} is not in its cache; {ways_on}") from error
        say(f"the Hub is out of reach: taking what was downloaded before of {repo}")
        return folder
    except OSError as error:
        raise RunError(f"{repo} can't be downloaded: {utils.first_line(error)}") from error


def within(seconds: float, function: Callable, *arguments):
    """function(*arguments), or TimeoutError after so many seconds: a host with several addresses that don't answer is
    tried at each of them, with a timeout of its own.
    """
    outcome = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put((None, function(*arguments)))
        except Exception as error:
            outcome.put((error, None))

    threading.Thread(target=call, daemon=True).start()
    try:
        error, value = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds} s") from None
    if error:
        raise error
    return value


def find_onnx(variant: Variant, model_id: str, folder: Path) -> tuple[Path, str]:
    """The ONNX file of a variant and a few words saying where it is from.

    A local export in the working directory comes first, then the default model's published exports, and if there
    is neither, the model is exported now into that folder.
    """
    exported = Path(Path(model_id).resolve().name + EXPORT_SUFFIX[variant.export])
    file = exported / "model.onnx"
    if file.is_file():
        report = exported / "parity.json"
        if report.is_file() and (gate := read_json(report).get("gate")):
            say(f"./{exported} failed its check: {gate}")
        return file, f"local export ./{file}"
    if exported.exists():
        raise UserError(f"./{exported} exists but holds no model.onnx; move it away")
    if (model_id, variant.export) in PUBLISHED_EXPORTS:
        repo, published = PUBLISHED_EXPORTS[model_id, variant.export]
        try:
            downloaded = download(repo, published) / published
            if downloaded.is_file():
                return downloaded, f"published export {repo}, {published}"
            say(f"no published export: {repo} has no file {published}")
        except UserError as error:
            say(f"no published export: {error}")
    utils.check_writable(exported.absolute().parent)
    say(f"exporting {model_id} into ./{exported}")
    try:
        with new_folder(exported) as temporary:
            graph = in_fresh_process(export, folder, temporary, variant.export)
    except RunError:
        if not file.is_file():
            raise
        return file, f"exported meanwhile by another run into ./{exported}"
    for finding in graph["findings"]:
        say(f"{exported}: {finding}")
    return file, f"exported now into ./{exported}"


def random_roberta_base() -> Path:
    """The folder of `random-roberta-base`, built once: RoBERTa-base's architecture with seeded random weights and a
    byte-level BPE tokenizer trained on the bundled texts.

    Speed doesn't depend on the weights. They are spread so that parity means something: probabilities vary from text
    to text (the attention's value path is 3 times its usual width), most labels are improbable and about 1 in 100 is
    above 0.5, as in a trained classifier of 28 emotions (the head is 8 times as wide, around -4).
    """
    folder = utils.CACHE / RANDOM_MODEL
    if not folder.exists():
        say(f"building {RANDOM_MODEL} in {folder}")
        try:
            with new_folder(folder) as temporary:
                in_fresh_process(build_random_roberta_base, temporary)
        except RunError:  # another run may have built it meanwhile
            if not folder.exists():
                raise
    return folder


def build_random_roberta_base(folder: Path) -> None:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    tokenizer = utils.train_tokenizer(
        [text for _, file in utils.DATASETS.values() for text in utils.read_column(utils.ROOT / "data" / file, "body")]
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=28,
        problem_type="multi_label_classification",
    )
    model = RobertaForSequenceClassification(config)
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.attention.self.value.weight *= 3
            layer.attention.output.dense.weight *= 3
        model.classifier.out_proj.weight *= 8
        model.classifier.out_proj.bias -= 4
    model.save_pretrained(folder)
    tokenizer.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True, model_max_length=512).save_pretrained(folder)


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False):
    """A temporary folder that becomes `folder` at the end of the block (with `replace`, in the place of an older one),
    or vanishes if the block fails. Raises RunError if there is a `folder` by then.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if replace and folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError as error:
            raise RunError(f"{folder} can't be made: {error.strerror}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def in_fresh_process(function: Callable, *arguments):
    """function(*arguments) in a process of its own, so that its imports, memory and GPU context stay out of this one.

    What it prints goes to standard error. Its UserError is raised here, any other error as a RunError; it ends when
    this process is interrupted.
    """
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,), daemon=True)
    start(process)
    theirs.close()
    try:
        mine.send((function, arguments))
        error, value = mine.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise RunError(f"{function.__name__} died, exit code {process.exitcode}") from None
    except BaseException:  # Ctrl-C
        process.kill()
        process.join()
        raise
    process.join()
    if error:
        raise error
    return value


def start(process: BaseProcess) -> None:
    """Starts a process that Ctrl-C never reaches, not even before quiet_process.

    Its arguments must be small: where it dies before it has read more than a pipe holds, `start` never returns.
    """
    interrupts = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))  # another thread may get it
    resource_tracker.ensure_running()  # starting it would take the mask away
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


def answer(connection: Connection) -> None:
    """Receives (function, arguments) and sends (error or None, what the function returns)."""
    quiet_process()
    function, arguments = connection.recv()
    try:
        connection.send((None, function(*arguments)))
    except UserError as error:
        connection.send((error, None))
    except Exception as error:
        connection.send((RunError(f"{function.__name__}: {type(error).__name__}: {utils.first_line(error)}"), None))


def quiet_process() -> None:
    """For a process of ours: its parent alone is interrupted by Ctrl-C and ends it, as its death does on Linux;
    standard output goes to standard error, and the libraries log nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_process().pid:
            sys.exit("the parent died")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


# -------------------------------------------------------------------------------------------------------------- export


def check_exportable(folder: Path, precision: str) -> None:
    """Raises UserError if optimum can't export, or can't optimize, a classifier of the folder's model type, or if the
    folder's tokenizer or weights don't load: optimum would export random ones for those that are missing.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401  registers the model types
    from optimum.exporters.tasks import TasksManager
    from optimum.onnxruntime.utils import ORTConfigManager

    config = load_config(folder)
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(config.model_type, "onnx", library_name="transformers")
        if "text-classification" not in tasks:
            raise KeyError(config.model_type)
        if precision == "fp16":
            ORTConfigManager.get_model_ort_type(config.model_type)
    except KeyError as error:
        step = "optimized" if precision == "fp16" else "exported"
        raise UserError(f"a classifier of type {config.model_type} can't be {step} by optimum") from error
    utils.load_tokenizer(folder)
    load_torch(VARIANTS["torch"], folder, Place(None, utils.cpu_cores()))


def export(folder: Path, target: Path, precision: str, shape_inference: bool = True) -> dict:
    """Exports the model in `folder` as `target`/model.onnx with its config and tokenizer beside it.

    fp32 is the plain export, fp16 has optimum's O4 optimization (fused nodes, tanh GELU, FP16), fp16-packed is that
    with the padding removed before the first layer and restored behind the last, int8 is quantized by quantize_int8.
    Returns what describe_graph says. Raises UserError for a model that can't be exported so.
    """
    import onnxruntime
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForSequenceClassification, ORTOptimizer

    onnxruntime.set_default_logger_severity(4)  # O4 asks for CUDA, only to optimize, and does as well without
    file = target / "model.onnx"
    try:
        with tempfile.TemporaryDirectory(dir=target) as plain:
            tempfile.tempdir = plain  # where optimum exports to: nothing is left elsewhere by an interruption
            model = ORTModelForSequenceClassification.from_pretrained(
                folder, export=True, trust_remote_code=False, local_files_only=True
            )
            model.save_pretrained(target if precision == "fp32" else plain)
            model.config.save_pretrained(target)
            if precision.startswith("fp16"):
                optimization = AutoOptimizationConfig.O4(disable_shape_inference=not shape_inference)
                optimizer = ORTOptimizer.from_pretrained(model)
                optimizer.optimize(save_dir=target, optimization_config=optimization, file_suffix="")
            if precision == "fp16-packed":
                pack(file)
            if precision == "int8":
                quantize_int8(folder, Path(plain) / "model.onnx", file)
        store_weights(file)
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise UserError(f"{folder} can't be exported to ONNX {precision}: {utils.first_line(error)}") from error
    finally:
        tempfile.tempdir = None
    utils.load_tokenizer(folder).save_pretrained(target)
    return describe_graph(file, precision, getattr(model.config, "num_hidden_layers", 0))


def pack(file: Path) -> None:
    """Rewrites an optimized graph in onnxruntime's packing mode: between RemovePadding and RestorePadding there are
    only real tokens. Raises NotImplementedError if its attention is not one fused node for each layer.
    """
    import onnx
    from onnxruntime.transformers.convert_to_packing_mode import PackingMode
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(onnx.load(file))
    PackingMode(model).convert(use_symbolic_shape_infer=False)
    model.topological_sort()
    if not model.get_nodes_by_op_type("RemovePadding"):
        raise NotImplementedError("its attention can't be packed")
    for outside in file.parent.glob(f"{file.name}?data"):
        outside.unlink()
    onnx.save_model(model.model, file, save_as_external_data=True, location=f"{file.name}.data")


INT8_OUTLIERS = 8  # channels: more change nothing on trained weights
INT8_TEXTS = 64  # to find them with
INT8_WORDS = (
    f"weights of the matrix products per channel, activations as they come, their {INT8_OUTLIERS} largest channels and "
    "the embeddings in FP32; for CPUs with VNNI or AMX (on older ones sums can saturate)"
)


def quantize_int8(folder: Path, plain: Path, file: Path) -> None:
    """Quantizes the plain export's products with constant weights: weights per output channel, activations dynamically.
    Embeddings, the products of two activations (the attention's) and outlying channels stay FP32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(plain)
    constant = {weight.name for weight in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    products = [
        node  # of a weight of its own: those that ALBERT's layers share can't be split for one of them
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constant and uses[node.input[1]] == 1
    ]
    apart = split_outliers(model, products, find_outliers(folder, plain, {node.input[0] for node in products}))
    onnx.save_model(model, plain, save_as_external_data=True, location=f"{plain.name}_split")
    quantize_dynamic(
        plain,
        file,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=apart,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=plain.with_name(f"{plain.name}_split").stat().st_size >= INSIDE_BYTES,
        extra_options={"MatMulConstBOnly": True},
    )


def find_outliers(folder: Path, plain: Path, tensors: set[str]) -> dict[str, np.ndarray]:
    """For each tensor [texts, tokens, channels] of the plain export, the channels that are largest on some texts."""
    import onnx
    import onnxruntime
    from onnx import helper

    probe = onnx.load(plain, load_external_data=False)
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(tensors))
    file = plain.with_name("probe.onnx")
    onnx.save(probe, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    tokenizer = utils.load_tokenizer(folder)
    token_ids = utils.tokenize(
        tokenizer,
        utils.load_dataset("normal", limit=INT8_TEXTS).texts,
        utils.token_limit(load_config(folder), tokenizer),
    )
    names = [node.name for node in session.get_inputs()]
    largest = dict.fromkeys(sorted(tensors), 0.0)
    for ids in token_ids:
        outputs = session.run(list(largest), feed(names, *utils.pad_batch([ids], 0)))
        for name, values in zip(largest, outputs, strict=True):
            largest[name] = np.maximum(largest[name], np.abs(values).reshape(-1, values.shape[-1]).max(axis=0))
    return {name: np.sort(np.argsort(-values)[:INT8_OUTLIERS]) for name, values in largest.items()}


def split_outliers(model, products: list, outliers: dict[str, np.ndarray]) -> list[str]:
    """Takes the outlying channels out of each of the products, into a small product of their own that is added to the
    rest: x W = x[rest] W[rest] + x[outliers] W[outliers]. Returns the names of the small products.

    One scale serves a whole activation in INT8, so that a few large channels leave all others few steps (Dettmers et
    al., LLM.int8(), 2022).
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    add_constant = model.graph.initializer.append
    split, halves = {}, set()
    for node in products:
        x, w, output = node.input[0], node.input[1], node.output[0]
        weight = numpy_helper.to_array(weights[w])
        rest = np.ones(len(weight), np.float32)
        rest[outliers[x]] = 0
        before = []
        if x not in halves:
            halves.add(x)
            add_constant(numpy_helper.from_array(rest, f"{x}_mask"))
            add_constant(numpy_helper.from_array(outliers[x], f"{x}_channels"))
            before.append(helper.make_node("Mul", [x, f"{x}_mask"], [f"{x}_rest"]))
            before.append(helper.make_node("Gather", [x, f"{x}_channels"], [f"{x}_outliers"], axis=-1))
        small = f"{node.name}_outliers"
        add_constant(numpy_helper.from_array(weight[outliers[x]], f"{small}_weight"))
        weights[w].CopyFrom(numpy_helper.from_array(weight * rest[:, None], w))
        before.append(helper.make_node("MatMul", [f"{x}_outliers", f"{small}_weight"], [f"{small}_part"], small))
        node.input[0], node.output[0] = f"{x}_rest", f"{small}_rest"
        after = helper.make_node("Add", [f"{small}_rest", f"{small}_part"], [output], f"{small}_sum")
        split[node.name] = [*before, node, after]
    nodes = [new for node in model.graph.node for new in split.get(node.name, [node])]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return [f"{node.name}_outliers" for node in products]


def store_weights(file: Path) -> None:
    """Puts the weights where every loader finds them: inside model.onnx, or from 2 GB on in model.onnx_data beside it.

    onnxruntime's optimizer writes model.onnx.data, which optimum's Hub loader does not download; a mere rename would
    leave the old name inside the model.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(file, load_external_data=False)
    outside = {
        entry.value for weight in model.graph.initializer for entry in weight.external_data if entry.key == "location"
    }
    if not outside and file.stat().st_size < INSIDE_BYTES:
        return
    load_external_data_for_model(model, str(file.parent))
    for name in outside:
        (file.parent / name).unlink()
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) >= INSIDE_BYTES
    location = f"{file.name}_data" if large else None
    onnx.save_model(model, file, save_as_external_data=large, location=location, size_threshold=1024)


def describe_graph(file: Path, precision: str, layers: int) -> dict:
    """`nodes`: how often the telling kinds of node occur, `opset`, and `findings`: what is not as it should be, with
    its consequence, in plain lines.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.load(file, load_external_data=False)
    nodes = Counter(node.op_type for node in model.graph.node)
    findings = []
    if precision.startswith("fp16"):
        for kind, expected, consequence in FUSIONS:
            found = sum(nodes[name] for name in kind)
            if found < expected * layers:
                findings.append(f"{found} of {expected * layers} {'/'.join(kind)} nodes: {consequence}")
        fp32 = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and np.prod(w.dims) > 1]
        if fp32:
            findings.append(
                f"{len(fp32)} weights are still FP32: they take twice the memory and their products run in FP32"
            )
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {
        "nodes": ", ".join(f"{count} {kind}" for kind, count in nodes.most_common() if TELLING.search(kind)),
        "opset": opset,
        "findings": findings,
    }


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Place:
    """Where a variant runs: `gpu` (its id, None for the CPU), CPU `threads`, and whether it is `alone` there."""

    gpu: int | None
    threads: int
    alone: bool = True


@dataclass(frozen=True)
class Runner:
    """A loaded variant, as functions: of these a pass times `forward` alone (end to end, `prepare` and `fetch` too).

    prepare(input_ids, attention_mask), both int64 [texts, tokens] in numpy -> inputs on the device;
    forward(inputs) -> outputs on the device, perhaps not computed yet; synchronize() waits until they are;
    fetch(outputs) -> logits, float32 [texts, labels] in numpy; warm_up(inputs) does what forward does only the first
    time that it gets inputs of a shape, if it is called for the largest shape first.
    """

    prepare: Callable
    forward: Callable
    synchronize: Callable
    fetch: Callable
    warm_up: Callable


def load(name: str, source: Path, place: Place) -> Runner:
    """Loads a variant by its name from `source`, a model's folder for torch and a file for the others."""
    variant = VARIANTS[name]
    if variant.runtime == "torch":
        return load_torch(variant, source, place)
    return load_onnx(source, place, variant.graphs) if variant.runtime == "onnx" else load_openvino(source, place)


def load_torch(variant: Variant, folder: Path, place: Place) -> Runner:
    """The model in torch, with SDPA where it has it. FP32 is IEEE FP32, without TF32.

    Compiled with dynamic shapes as one graph, and with `graphs` captured as a CUDA graph for each shape; what would
    make torch do less after all (a graph break, the limit of recompilations, a capture that is skipped) is an error.
    Raises UserError where weights are missing, which would be random then.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(place.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cpu" if place.gpu is None else f"cuda:{place.gpu}")
    if place.gpu is not None:
        torch.cuda.set_device(device)
    dtype = getattr(torch, TORCH_DTYPES[variant.precision])
    options = {"output_loading_info": True, "trust_remote_code": False, "local_files_only": True}
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **options)
    except Exception as error:  # a wrong config and a broken file fail in as many ways as there are
        raise UserError(f"{folder} can't be loaded: {utils.first_line(error)}") from error
    if loading["missing_keys"]:
        raise UserError(f"{folder} lacks weights: {', '.join(sorted(loading['missing_keys'])[:3])}")
    if unused := [key for key in sorted(loading["unexpected_keys"]) if re.search(r"\.\d+\.", key)]:
        raise UserError(f"{folder} has layers that its config.json doesn't count: {', '.join(unused[:3])}")
    model.eval().to(device)
    if variant.compiled:
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._inductor.config.triton.cudagraph_or_error = variant.graphs
        model.compile(dynamic=True, fullgraph=True, mode="reduce-overhead" if variant.graphs else None)

    @torch.inference_mode()
    def forward(inputs):
        logits = model(*inputs).logits
        return logits.clone() if variant.graphs else logits  # a graph's next run writes into the same memory

    stacks = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]

    def warm_up(inputs):
        """One layer alone: on a CPU, oneDNN keeps what it prepares for a shape for the layers that follow."""
        layers, others = stacks[0], stacks[0][1:]
        del layers[1:]
        try:
            forward(inputs)
        finally:
            layers.extend(others)

    def capture(inputs):
        """The first run of a shape allocates, the second captures, the third is the first replay."""
        for _ in range(3):
            forward(inputs)

    one_layer = place.gpu is None and len(stacks) == 1 and not variant.compiled
    # beside the stream that computes, which a copy would wait for
    copying = contextlib.nullcontext() if place.gpu is None else torch.cuda.stream(torch.cuda.Stream(device))

    def prepare(input_ids, mask):
        if place.gpu is not None:
            torch.cuda.set_device(device)  # of this thread, which may be another than the one that loaded
        with copying:  # waits for the copies, since they are from memory that is not pinned
            return torch.from_numpy(input_ids).to(device), torch.from_numpy(mask).to(device)

    return Runner(
        prepare=prepare,
        forward=forward,
        synchronize=(lambda: None) if place.gpu is None else torch.cuda.synchronize,
        fetch=lambda logits: logits.float().cpu().numpy(),
        warm_up=capture if variant.graphs else warm_up if one_layer else forward,
    )


def load_onnx(file: Path, place: Place, graphs: bool = False) -> Runner:
    """An onnxruntime session with one thread pool of `place.threads`, which spins only where it is alone.

    On a GPU, FP32 is IEEE FP32 (no TF32), inputs and outputs stay in device memory, and a run only queues its work;
    with `graphs` it replays the CUDA graph of its shape. Raises UserError if the session did not get the CUDA provider.
    """
    if place.gpu is not None:
        import torch  # before onnxruntime: it brings the CUDA libraries
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = place.threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would allocate anew in the second run of each shape, inside the timing
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if place.alone else "0")
    provider, settings = "CPUExecutionProvider", {}
    if place.gpu is not None:
        provider, settings = "CUDAExecutionProvider", {"device_id": place.gpu, "use_tf32": 0}
        if graphs:
            stream = torch.cuda.Stream(place.gpu)
            torch.cuda.set_stream(stream)  # on which bind_onnx copies what goes into a graph and what comes out
            settings |= {"enable_cuda_graph": 1, "user_compute_stream": stream.cuda_stream}
    session = onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings)], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise UserError(f"onnxruntime gave a session on {session.get_providers()[0]} instead of {provider}")
    if place.gpu is not None:
        torch.cuda.set_device(place.gpu)
        return bind_onnx(session, torch.device(f"cuda:{place.gpu}"), graphs)
    names = [node.name for node in session.get_inputs()]
    [output] = session.get_outputs()
    largest = 0  # tokens, of the runs so far

    def warm_up(inputs):
        """Runs what is larger than all before: that grows the memory. The kernels prepare nothing for a shape."""
        nonlocal largest
        if inputs["input_ids"].size > largest:
            session.run([output.name], inputs)
            largest = inputs["input_ids"].size

    return Runner(
        prepare=lambda input_ids, mask: feed(names, input_ids, mask),
        forward=lambda inputs: session.run([output.name], inputs)[0],
        synchronize=lambda: None,
        fetch=lambda logits: logits,
        warm_up=warm_up,
    )


def bind_onnx(session, device, graphs: bool) -> Runner:
    """Runs a session on inputs and outputs that stay in the memory of a torch device, without waiting for them.

    With `graphs` (the provider's `enable_cuda_graph`, its stream torch's current one) each shape has a CUDA graph and
    memory of its own, which its inputs are copied into, from when it is warmed up.
    """
    import onnxruntime
    import torch

    names = [node.name for node in session.get_inputs()]
    [output] = session.get_outputs()
    dtype = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}[output.type]
    numpy_dtype = {torch.float32: np.float32, torch.float16: np.float16}[dtype]

    def run_options(graph: int):
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    uncaptured = run_options(-1)
    probe = feed(names, *np.ones((2, 1, 2), np.int64))
    labels = session.run([output.name], probe, uncaptured)[0].shape[1]  # not in every graph

    def prepare(input_ids: np.ndarray, mask: np.ndarray) -> dict:
        return {name: torch.from_numpy(value).to(device) for name, value in feed(names, input_ids, mask).items()}

    def bind(tensors: dict):
        binding = session.io_binding()
        logits = torch.empty((len(tensors["input_ids"]), labels), dtype=dtype, device=device)
        at = (device.type, device.index or 0)
        for name, tensor in tensors.items():
            binding.bind_input(name, *at, np.int64, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(output.name, *at, numpy_dtype, tuple(logits.shape), logits.data_ptr())
        return binding, logits, tensors  # the tensors own the memory that is bound

    def forward(inputs):
        binding, logits, _ = inputs
        session.run_with_iobinding(binding, uncaptured)
        return logits

    captured = {}  # shape -> what is bound, and the options that name its graph

    def replay(tensors: dict):
        (binding, logits, static), options = captured[tensors["input_ids"].shape]
        for name, tensor in tensors.items():
            static[name].copy_(tensor)
        session.run_with_iobinding(binding, options)
        return logits.clone()

    def capture(tensors: dict):
        shape = tensors["input_ids"].shape
        if shape not in captured:
            static = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
            captured[shape] = bind(static), run_options(len(captured) + 1)
        replay(tensors)

    return Runner(
        prepare=prepare if graphs else lambda *arrays: bind(prepare(*arrays)),
        forward=replay if graphs else forward,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        fetch=lambda logits: logits.float().cpu().numpy(),
        warm_up=capture if graphs else forward,
    )


def load_openvino(file: Path, place: Place) -> Runner:
    """OpenVINO's CPU plugin in BF16 on `place.threads`, from the plain ONNX export.

    Raises UserError if OpenVINO is missing, or if it would compute in another precision on this CPU.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError("openvino-bf16 needs OpenVINO: pip install openvino") from error

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": place.threads, "NUM_STREAMS": 1}
    settings |= {"ENABLE_CPU_PINNING": False}
    compiled = openvino.compile_model(file, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != "bf16":
        raise UserError(f"OpenVINO computes in {precision} on this CPU, which has no BF16")
    request = compiled.create_infer_request()
    names = [node.any_name for node in compiled.inputs]

    def forward(inputs):
        return request.infer(inputs, share_inputs=True)[0].copy()

    return Runner(
        prepare=lambda input_ids, mask: feed(names, input_ids, mask),
        forward=forward,
        synchronize=lambda: None,
        fetch=lambda logits: logits,
        warm_up=forward,
    )


def feed(names: list[str], input_ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs that a graph asks for by name."""
    values = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": np.zeros_like(input_ids)}
    return {name: values[name] for name in names}


def peak_precision(name: str, gpu: int | None) -> str:
    """The precision that a variant computes its matrix products in."""
    precision = VARIANTS[name].precision.split("-")[0]
    return "fp32" if (VARIANTS[name].runtime, precision, gpu) == ("onnx", "fp16", None) else precision


def measure_peaks(precisions: list[str], place: Place) -> dict[str, float]:
    """For each precision the FLOP/s that the best of a few large matrix products reaches on all of the device: what a
    user can get of it, not what its data sheet says. INT8 counts its operations as FLOPs.
    """
    import torch

    torch.set_num_threads(utils.cpu_cores())
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cpu" if place.gpu is None else f"cuda:{place.gpu}")
    wait = (lambda: None) if place.gpu is None else (lambda: torch.cuda.synchronize(device))
    repeats = 1 if place.gpu is None else 10  # products between two waits
    peaks = {}
    for precision in precisions:
        for rows, inner, columns in PEAK_PRODUCTS if place.gpu is None else GPU_PEAK_PRODUCTS:
            left, right = torch.rand(rows, inner, device=device), torch.rand(columns, inner, device=device)
            if precision == "int8":
                left, right = ((100 * matrix).to(torch.int8) for matrix in (left, right))
                product = torch._int_mm
            else:
                left, right = (matrix.to(getattr(torch, TORCH_DTYPES[precision])) for matrix in (left, right))
                product = torch.mm
            product(left, right.T)
            begin = time.monotonic()
            while time.monotonic() - begin < PEAK_SECONDS:
                wait()
                start = time.monotonic()
                for _ in range(repeats):
                    product(left, right.T)
                wait()
                seconds = (time.monotonic() - start) / repeats
                peaks[precision] = max(peaks.get(precision, 0), 2 * rows * inner * columns / seconds)
    return peaks


def check_gpu(gpu: int, with_onnx: bool) -> tuple[str, str, str]:
    """The name, the driver and NVML's id of a GPU; to be called in a fresh process, since it starts CUDA.

    Raises UserError if there is no such GPU, or if onnxruntime (asked for by `with_onnx`) can't use it.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("no GPU: torch finds no CUDA device here; --device cpu runs without one")
    if gpu >= torch.cuda.device_count():
        raise UserError(f"no GPU {gpu}: there are {torch.cuda.device_count()}, numbered from 0")
    if with_onnx:
        with tempfile.TemporaryDirectory() as folder:
            load_onnx(write_probe(Path(folder) / "probe.onnx"), Place(gpu, threads=1))
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        driver = ""
    return torch.cuda.get_device_name(gpu), driver, f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"


def write_probe(file: Path) -> Path:
    """A graph with a classifier's input and output that does nothing, for a session of no other purpose."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["texts", "tokens"]
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    cast = helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "probe", [tokens], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file
