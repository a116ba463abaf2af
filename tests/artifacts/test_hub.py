"""A network goes to the hub and comes back: to a folder, and to a server on this machine that speaks as the hub."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_separable import Plan, SeparableError, apply
from torch_separable._network.weights_file import save_weights
from torch_separable.conversion import Conversion, LayerPlan, Report
from torch_separable.models import resnet20

pytest.importorskip("huggingface_hub")
HubNetwork: Any = pytest.importorskip("torch_separable.artifacts.hub").HubNetwork
FILES = ["README.md", "config.json", "model.safetensors", "plan.json", "results.json"]


def converted() -> Any:
    torch.manual_seed(3)
    plan = Plan("svd", (LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "pointwise_first", 2, reason="a test"),))
    return apply(resnet20(num_classes=4), plan).eval(), plan


def test_network_round_trips_through_a_folder(tmp_path: Path) -> None:
    model, plan = converted()
    HubNetwork(model, plan=plan, results={"accuracy": 0.5}).save_pretrained(tmp_path / "Ü n")
    assert sorted(path.name for path in (tmp_path / "Ü n").iterdir()) == FILES
    again = HubNetwork.from_pretrained(tmp_path / "Ü n")
    images = torch.randn(2, 3, 32, 32)
    assert not again.training
    assert torch.equal(again(images), model(images))
    again.save_pretrained(tmp_path / "second")
    for name in ("plan.json", "results.json", "model.safetensors", "README.md"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "Ü n" / name).read_bytes()


def test_saving_writes_the_current_model(tmp_path: Path) -> None:
    model, plan = converted()
    report = Report((2, 1), (2, 1), 0.0, 1.0, ("layer1.0.conv1",), {}, (3, 32, 32))
    held = HubNetwork(Conversion(model, plan, report))
    held.save_pretrained(tmp_path / "first")
    held.model = copy.deepcopy(model)
    torch.nn.init.ones_(held.model.linear.bias)
    held.save_pretrained(tmp_path / "second")
    assert HubNetwork.from_pretrained(tmp_path / "second").model.linear.bias.eq(1).all()


def test_card_has_valid_hub_metadata(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    HubNetwork(converted()[0]).save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "torch-separable"
    assert "depthwise-separable-convolution" in data.tags
    assert data.license is None


def test_function_that_is_not_allowed_is_not_imported(tmp_path: Path) -> None:
    HubNetwork(converted()[0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": "antigravity:geohash"}))
    with pytest.raises(SeparableError, match=r'allow=\("antigravity",\)'):
        HubNetwork.from_pretrained(tmp_path)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("content", ["[]", "{", '{"model": []}'])
def test_damaged_config_is_refused(tmp_path: Path, content: str) -> None:
    HubNetwork(converted()[0]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SeparableError, match=r"config\.json"):
        HubNetwork.from_pretrained(tmp_path)


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match="is not a folder, and downloading it from the hub failed"):
        HubNetwork.from_pretrained(tmp_path / "gone")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a push and a pull of small files need."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, document: Any) -> None:
        self.answer(json.dumps(document).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"POST {self.path.partition('?')[0]}")
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer_json(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/me/net/commit/{'a' * 40}"
            self.answer_json({"success": True, "commitUrl": url, "commitOid": "a" * 40, "hookOutput": ""})
        else:
            self.answer_json({"url": f"http://{self.headers['Host']}/me/net", "name": "me/net", "id": "me/net"})

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "b" * 40} for n, c in self.files.items()]
            info = {"id": "me/net", "sha": "a" * 40, "siblings": siblings, "private": False, "tags": []}
            self.answer_json(tree if "/tree/" in self.path else info)
        else:
            content = self.files[self.path.rpartition("/")[2]]
            self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="a" * 40)

    do_HEAD = do_GET  # noqa: N815 - the names are http.server's


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Hub,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


TRAVEL = """
import sys, torch
from torch_separable import Plan, apply
from torch_separable.conversion import LayerPlan
from torch_separable.artifacts.hub import HubNetwork
from torch_separable.models import resnet20
torch.manual_seed(3)
layer = LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "pointwise_first", 2, reason="a test")
model = apply(resnet20(num_classes=4), Plan("svd", (layer,))).eval()
print(HubNetwork(model).push_to_hub("me/net", token="a-token", private=True))
again = HubNetwork.from_pretrained("me/net", token="a-token")
images = torch.randn(2, 3, 32, 32)
assert torch.equal(again(images), model(images))
"""


def test_network_is_pushed_to_a_hub_and_fetched_from_it(tmp_path: Path, hub: Any) -> None:
    address = f"http://127.0.0.1:{hub.server_port}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAVEL], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{done.stderr}\n{hub.RequestHandlerClass.asked}"
    files = hub.RequestHandlerClass.files
    assert sorted(name for name in files if not name.startswith(".")) == FILES
    save_weights(converted()[0], tmp_path / "w.safetensors")
    assert files["model.safetensors"] == (tmp_path / "w.safetensors").read_bytes()
