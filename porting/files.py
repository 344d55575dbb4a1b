"""Which files beside the weights travel with a port, and what kind of file each name is."""

from fnmatch import fnmatchcase

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tekken.json",
)
PROMPT = ("chat_template*", "generation_config.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
TRAVEL = TOKENIZER + PROMPT + PROCESSOR + LEGAL

CODE = (".py", ".pkl", ".bin", ".pt", ".pth")

SKIPPED = (
    ("README.md", "a port gets its own card"),
    (".gitattributes", "the Hub writes its own"),
    ("*.py", "code from strangers is never run or moved"),
    ("*.safetensors", "not the weights that are loaded"),
    ("*.safetensors.index.json", "not the weights that are loaded"),
    ("*.bin", "pickle, or another copy of the weights"),
    ("*.pt", "pickle, or another copy of the weights"),
    ("*.pth", "pickle, or another copy of the weights"),
    ("*.pkl", "pickle"),
    ("*.gguf", "another format: convert the port instead"),
    ("*.onnx*", "another format: convert the port instead"),
    ("*.h5", "another format: convert the port instead"),
    ("*.msgpack", "another format: convert the port instead"),
)


def matches(file: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file of the root folder fits one of the patterns, and is no code and no pickle."""
    return (
        "/" not in file
        and not file.endswith(CODE)
        and any(fnmatchcase(file, pattern) for pattern in patterns)
    )


def why_skipped(file: str) -> str:
    """The reason, for a person, why a file that does not travel is left behind."""
    name = file.rsplit("/", 1)[-1]
    for pattern, reason in SKIPPED:
        if fnmatchcase(name, pattern):
            return reason
    return "in a subfolder" if "/" in file else "not needed to load the model"
