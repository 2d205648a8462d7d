"""The Label Studio whose tasks are labelled: where its images are, and the token with which it gives them out.

Its tasks name images by paths of its own (/data/upload/...), by cloud addresses (s3://...), for which it signs an
ordinary one, or by an address of the web. Tokens are of two kinds: a legacy one is sent as it is; a personal access
token is exchanged for one that lasts some minutes.

Source: labelstud.io/guide/api, labelstud.io/guide/access_tokens.
"""

from __future__ import annotations

import base64
import json
import re
import string
import threading
import time
from urllib.parse import quote, urlsplit

from model.errors import UserError
from utils.serving import fetch
from utils.serving.fetch import (
    AGENT,
    Limits,
    RefusedError,
    Site,
    asked,
    checked,
    image_bytes,
    origin_of,
    short,
)

URL_VARIABLE, TOKEN_VARIABLE = (
    "LABEL_STUDIO_URL",
    "LABEL_STUDIO_API_KEY",
)  # as Label Studio's own tools name them
CLOUD = ("s3://", "gs://", "azure-blob://")
PERSONAL = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a JSON web token
ACCESS_SECONDS = 120.0  # of the five minutes that an exchanged token lasts
MAX_ANSWER = 100_000  # bytes of an answer that is no image


class LabelHost:
    """A Label Studio at an address; `url` "": there is none, and only data URLs and web addresses are images.

    Raises:
        UserError: the address is none, or there is a token without an address.
    """

    def __init__(self, url: str = "", token: str = "") -> None:
        if token and not url:
            raise UserError(
                "--label_studio_token belongs to an address; pass --label_studio_url too, as in http://localhost:8080"
            )
        self.url, self._token = url.rstrip("/"), token.strip()
        if not re.fullmatch(r"[!-~]*", self._token):
            raise UserError("--label_studio_token has letters that a token has not; copy it again")
        self._origin = self._checked_origin() if url else None
        self._access, self._access_end = "", 0.0
        self._lock = threading.Lock()

    def _checked_origin(self) -> tuple[str, str, int]:
        try:
            return origin_of(checked(self.url))
        except UserError as problem:
            raise UserError(f"--label_studio_url (or {URL_VARIABLE}): {problem}") from None

    def image_bytes(self, value: str, task_id: object, limits: Limits) -> bytes:
        """The content of the image file that a task names.

        Raises:
            UserError: it cannot be had; the message says what to change.
        """
        address = self.address_of(value, task_id)
        try:
            return image_bytes(address, limits, self.site())
        except RefusedError as problem:
            hint = "check" if self._token else "pass"
            raise UserError(
                f"{problem}: it wants a token; {hint} --label_studio_token (or {TOKEN_VARIABLE}), from the account "
                "page of Label Studio"
            ) from None

    def address_of(self, value: str, task_id: object) -> str:
        """The address under which the image of a task can be fetched."""
        if value.startswith("data:"):
            return value
        plain = quote(value, safe=string.punctuation)  # as a browser does: spaces, letters beyond ASCII
        if re.match(r"https?://", plain, re.IGNORECASE):
            return plain
        is_cloud = value.startswith(CLOUD)
        if not is_cloud and not value.startswith(("/", "upload/")):
            raise UserError(
                f"{short(value)} is no address of an image; a task holds an upload of Label Studio, http(s)://, "
                "s3://, gs://, azure-blob:// or a data URL"
            )
        if not self.url:
            raise UserError(
                f"{short(value)} is in Label Studio; say where that is: --label_studio_url (or {URL_VARIABLE})"
            )
        if is_cloud:
            code = base64.urlsafe_b64encode(value.encode()).decode()
            return f"{self.url}/tasks/{quote(str(task_id), safe='')}/presign/?fileuri={code}"
        return self.url + (plain if plain.startswith("/") else f"/data/{plain}")

    def site(self) -> Site | None:
        """The site that images are fetched from whether or not --allow_urls is given."""
        if self._origin is None:
            return None
        headers = {"Authorization": self.authorization()} if self._token else {}
        return Site(origin=self._origin, headers=headers, login="/user/login")

    def authorization(self) -> str:
        """The header for the token."""
        if not PERSONAL.fullmatch(self._token):
            return f"Token {self._token}"
        with self._lock:
            if time.monotonic() >= self._access_end:
                self._access = self._exchanged()
                self._access_end = time.monotonic() + ACCESS_SECONDS
            return f"Bearer {self._access}"

    def _exchanged(self) -> str:
        """A token of some minutes for the personal access token."""
        url = f"{self.url}/api/token/refresh"
        headers = {"User-Agent": AGENT, "Content-Type": "application/json"}
        body = json.dumps({"refresh": self._token}).encode()
        end = time.monotonic() + fetch.SECONDS
        with asked("POST", urlsplit(url), headers, end, body=body, anywhere=True) as response:
            if response.status in (400, 401, 403):
                raise UserError(
                    f"Label Studio at {self.url} refuses the personal access token (status {response.status}); make "
                    f"a new one on its account page, for --label_studio_token or {TOKEN_VARIABLE}"
                )
            if response.status != 200:
                raise UserError(f"{url} answers with status {response.status}; check --label_studio_url")
            content = response.read(MAX_ANSWER)
        try:
            return str(json.loads(content)["access"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{url} answers without a token; check --label_studio_url") from None
