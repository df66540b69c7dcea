"""SSCD in plain modules against TorchScript programs made here, whatever their tensors are called."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import transforms

from diffkit.errors import InputError
from diffkit.runs import sha256_file
from memorization.copies import load_copy_detector
from memorization.copies.sscd import SSCD, GeneralisedMean, SSCDSimilarity, architecture_of, is_torchscript, prepare

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import convert_sscd

PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tiny_sscd(groups: int = 1, width: int = 64, dims: int = 16) -> SSCD:
    """A random SSCD with one or two blocks a stage; norms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = SSCD((1, 2, 1, 1), groups=groups, width_per_group=width, dims=dims)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


class Foreign(nn.Module):
    """The same network under other names, its shortcut run first, as Classy Vision has it."""

    def __init__(self, model: SSCD) -> None:
        super().__init__()
        body = model.backbone
        self.initial = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        self.blocks = nn.Sequential(
            *(ForeignBlock(block) for stage in range(1, 5) for block in body._modules[f"layer{stage}"])
        )
        self.embeddings = nn.Sequential(GeneralisedMean(), body.fc)

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.normalize(self.embeddings(self.blocks(self.initial(pictures))))


class ForeignBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU(), block.conv3)
        self.bn = block.bn3
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn(self.inner(x)) + shortcut)


@pytest.fixture(params=["named", "foreign", "frozen", "frozen foreign", "frozen, norms kept"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, SSCD]:
    """A TorchScript file and the network that it was made of."""
    model = tiny_sscd(groups=4, width=8) if request.param == "foreign" else tiny_sscd()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(Foreign(model).eval() if "foreign" in request.param else model, PICTURES)
        if "frozen" in request.param:
            script = torch.jit.freeze(script, optimize_numerics="kept" not in request.param)
    script.save(str(tmp_path / "sscd.torchscript.pt"))
    return tmp_path / "sscd.torchscript.pt", model


def test_the_converted_network_computes_what_the_program_computes(program: tuple[Path, SSCD], tmp_path: Path) -> None:
    source, model = program
    target = convert_sscd.convert(source, tmp_path / "out", sha256_file(source).upper())
    with torch.no_grad():
        wanted = torch.jit.load(str(source))(PICTURES)
        found = SSCD.from_pretrained(target.parent)(PICTURES)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert architecture_of(load_file(target)) == architecture_of(model.state_dict())


def test_a_program_with_an_unknown_checksum_is_not_run(program: tuple[Path, SSCD], tmp_path: Path) -> None:
    source, _ = program
    assert is_torchscript(source)
    with pytest.raises(InputError, match=r"unknown SHA-256 [0-9a-f]{64}"):
        convert_sscd.convert(source, tmp_path / "out")
    with pytest.raises(InputError, match="do not use it"):
        convert_sscd.convert(source, tmp_path / "out", "0" * 64)
    with pytest.raises(InputError, match="convert it once"):
        SSCD.from_pretrained(source)
    assert not (tmp_path / "out").exists()


class Squared(nn.Module):
    """The right tensors, another computation."""

    def __init__(self, model: SSCD) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures).square()


def test_another_computation_is_noticed(tmp_path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(Squared(tiny_sscd()), PICTURES).save(str(tmp_path / "x.pt"))
    with pytest.raises(InputError, match="descriptors differ by"):
        convert_sscd.convert(tmp_path / "x.pt", tmp_path, sha256_file(tmp_path / "x.pt"))


def test_files_of_plain_tensors_need_no_conversion(tmp_path: Path) -> None:
    model = tiny_sscd()
    torch.save(model.state_dict(), tmp_path / "x.torchvision.pt")
    torch.save(Foreign(model).state_dict(), tmp_path / "x.classy.pt")
    for name in ("x.torchvision.pt", "x.classy.pt"):
        with torch.no_grad():
            torch.testing.assert_close(SSCD.from_pretrained(tmp_path / name)(PICTURES), model(PICTURES))


def test_other_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    weights = tiny_sscd().state_dict()
    torch.save([weights], tmp_path / "list.pt")
    torch.save({"conv": torch.zeros(1, 1, 3, 3)}, tmp_path / "other.pt")
    torch.save({k: v for k, v in weights.items() if k != "backbone.bn1.bias"}, tmp_path / "short.pt")
    torch.save({**weights, "backbone.bn1.bias": torch.zeros(5)}, tmp_path / "shape.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    cases = {
        "list.pt": "something else",
        "other.pt": "four widths",
        "short.pt": "expected .* tensors, got",
        "shape.pt": r"bn1.bias has shape \(5,\)",
        "text.pt": "no file of plain tensors",
        "text.safetensors": "no safetensors file",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            SSCD.from_pretrained(tmp_path / name)


def test_missing_weights_say_what_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFKIT_SSCD", raising=False)
    for name in ("sscd", f"sscd:{tmp_path / 'nowhere'}", f"sscd:{tmp_path}"):
        with pytest.raises(InputError, match=r"Download sscd_disc_mixup.*convert_sscd.py.*DIFFKIT_SSCD"):
            load_copy_detector(name)


def test_the_detector_names_its_weights_and_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tiny_sscd(dims=24).state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setenv("DIFFKIT_SSCD", str(tmp_path))
    detector = load_copy_detector("sscd")
    digest = sha256_file(tmp_path / "model.safetensors")
    assert f"320x320, antialiased bilinear, ImageNet mean and deviation; 24 numbers; weights sha256 {digest}" in (
        detector.preprocessing
    )
    small = SSCDSimilarity(tmp_path, resize="small-288")
    assert small.preprocessing != detector.preprocessing
    with pytest.raises(InputError, match="skew-320 or small-288"):
        SSCDSimilarity(tmp_path, resize="crop")  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["skew-320", "small-288"])
@pytest.mark.parametrize("shape", [(400, 360), (300, 500), (331, 301), (64, 64)])
def test_preparation_is_the_authors_recipe(resize: str, shape: tuple[int, int]) -> None:
    picture = (torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 255).byte()
    picture = nn.functional.interpolate(picture.float(), size=shape, mode="bicubic").clamp(0, 255).byte()
    pil = Image.fromarray(picture[0].permute(1, 2, 0).numpy())
    size = [320, 320] if resize == "skew-320" else 288
    recipe = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    wanted, found = recipe(pil), prepare(picture / 255, resize)[0]
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1.01 / 255 / 0.224  # PIL rounds to 8 bits


@pytest.mark.parametrize(
    ("layers", "groups", "width", "dims", "millions"),
    [((3, 4, 6, 3), 1, 64, 512, 24.557), ((3, 4, 23, 3), 32, 4, 1024, 44.226)],
)
def test_the_published_sizes(layers: tuple[int, ...], groups: int, width: int, dims: int, millions: float) -> None:
    """ResNet50 with 512 numbers, ResNeXt101 32x4d with 1024: torchvision's bodies, another linear layer."""
    with torch.device("meta"):
        model = SSCD(layers, groups=groups, width_per_group=width, dims=dims)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.001)
    assert architecture_of(model.state_dict()) == {
        "layers": layers,
        "groups": groups,
        "width_per_group": width,
        "dims": dims,
    }


def test_the_script_says_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pt").write_text("hello")
    monkeypatch.setattr(sys, "argv", ["convert_sscd.py", str(tmp_path / "x.pt"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no file of plain tensors"):
        convert_sscd.main()
