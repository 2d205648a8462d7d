"""Settings of chat.py."""

from __future__ import annotations

from dataclasses import dataclass

from model.choices import DEFAULT_NEW_TOKENS, check_min_area
from model.errors import UserError
from model.generation.sampling import Sampling
from utils.common.checks import require_at_most, require_fraction, require_positive
from utils.common.settings import setting
from utils.config.data import OUTPUT
from utils.config.inference import PROMPTING, QUESTION, LoadingConfig

SAMPLING, SERVER = "answers in words", "server"
PROTOCOLS = ("auto", "none", "kitty", "iterm2", "sixel")  # for images in the terminal


@dataclass(frozen=True, kw_only=True)
class ChatConfig(LoadingConfig):
    """Settings of chat.py."""

    image: str = setting(
        "",
        "image to ask about, a folder of images, or a pattern: 'photos/*.jpg'",
        group=QUESTION,
        unset="a conversation starts",
        path=True,
    )
    prompt: str = setting("", "a question about it in words", group=QUESTION)
    classes: str = setting(
        "",
        'a complex query about it: the classes to look for, as in "person, tree, dog"; a name with a comma stands in '
        "double quotes",
        group=QUESTION,
    )

    classes_per_query: int | None = setting(
        None, "classes that one query names; longer lists are split", group=PROMPTING, unset="as in training"
    )
    presence_threshold: float | None = setting(
        None, "probability from which a class counts as present", group=PROMPTING, unset="arg-max"
    )

    max_new_tokens: int = setting(
        DEFAULT_NEW_TOKENS, "maximum number of tokens of a generated answer", group=SAMPLING
    )
    temperature: float = setting(
        0.0, "0: always the most probable token; above: tokens are drawn", group=SAMPLING
    )
    top_p: float = setting(
        1.0, "draw among the most probable tokens that together have this probability", group=SAMPLING
    )
    seed: int = setting(0, "random seed of the drawn tokens", group=SAMPLING)

    vis_save_path: str = setting("./vis_output", "folder for masks and overlays", group=OUTPUT, path=True)
    instances: bool = setting(
        False,
        "a mask for each object instead of each class: those that the model tells apart, or else the connected parts "
        "of a mask, the largest first",
        group=OUTPUT,
    )
    min_area: int = setting(0, "with --instances: objects with fewer pixels are left out", group=OUTPUT)
    cutouts: bool = setting(
        False, "also what each mask covers, as a PNG that is transparent outside", group=OUTPUT
    )
    save_maps: bool = setting(
        False,
        "also where each [SEG] looks, as a heat map over the image; of a model trained with --spatial_prompt",
        group=OUTPUT,
    )
    json: bool = setting(
        False, "print each answer as one line of JSON (docs/chat.md) and nothing else", group=OUTPUT
    )
    polygons: bool = setting(False, "add outlines to the JSON, beside run lengths", group=OUTPUT)
    inline_images: str = setting(
        "auto",
        "show overlays in the terminal; auto: if the terminal says that it can",
        PROTOCOLS,
        group=OUTPUT,
    )

    serve: bool = setting(
        False,
        "answer requests over HTTP (docs/serving.md), also those of Label Studio; flags on prompting and answers are "
        "the defaults of requests",
        group=SERVER,
    )
    web: bool = setting(
        False,
        "open a page for browsers (docs/page.md); with --serve too, page and requests share one port",
        group=SERVER,
    )
    share: bool = setting(
        False, "with --web: a public link to the page through gradio's tunnel, for everybody", group=SERVER
    )
    examples: str = setting(
        "",
        "with --web: folder of images that the page offers",
        group=SERVER,
        unset="those of the toy assistant, with it alone",
        path=True,
    )
    open_browser: bool = setting(
        False, "with --web: open the page in this machine's browser, if it has a display", group=SERVER
    )
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: every one of this machine", group=SERVER)
    port: int = setting(8000, "port to listen on; 0: any free one", group=SERVER)
    api_key: str = setting(
        "",
        "key that requests have to bring, and the password of the page; also LASAGNA_API_KEY in the environment",
        group=SERVER,
        unset="none",
    )
    model_name: str = setting("", "name of the model in requests", group=SERVER, unset="that of its folder")
    allow_urls: bool = setting(
        False, "fetch images that requests name by address, from the public web only", group=SERVER
    )
    label_studio_url: str = setting(
        "",
        "address of the Label Studio whose tasks are labelled (docs/label_studio.md): images are fetched from it; "
        "also LABEL_STUDIO_URL in the environment",
        group=SERVER,
        unset="none",
    )
    label_studio_token: str = setting(
        "",
        "access token of an account there; also LABEL_STUDIO_API_KEY in the environment",
        group=SERVER,
        unset="none",
    )
    max_batch: int = setting(8, "maximum number of requests answered together", group=SERVER)
    max_waiting: int = setting(64, "maximum number of waiting requests; others get status 429", group=SERVER)
    max_request_mb: float = setting(20.0, "maximum size of a request, in 10^6 bytes", group=SERVER)
    max_megapixels: float = setting(12.0, "maximum size of an image, in 10^6 pixels", group=SERVER)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_new_tokens", "classes_per_query", "max_batch", "max_waiting")
        require_positive(self, "max_request_mb", "max_megapixels")
        require_at_most(self, 1e6, "max_request_mb", "max_megapixels")
        require_fraction(self, "presence_threshold")
        check_min_area(self.min_area, instances=self.instances, name="--min_area")
        _ = self.sampling  # its values are checked

        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must be in 0 to 65535, got {self.port}")

    @property
    def sampling(self) -> Sampling:
        """How the tokens of answers in words are chosen."""
        try:
            return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        except UserError as problem:  # it begins with the name of the setting
            raise UserError(f"--{problem}") from None
