"""SOURCE: built-in networks' counts and sizes, workload files, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from convtvm.errors import SourceError, WorkloadError
from convtvm.problem.sources import BUILTIN_NETWORKS, merge_duplicates, read_source
from convtvm.problem.workload import ConvWorkload

LINE = "mb1ic64ih56oc64oh56kh3ph1"
WORKLOAD = ConvWorkload.parse(LINE)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# Built-in networks.


@pytest.mark.parametrize(
    ("network", "distinct", "convolutions", "macs"),
    [
        ("resnet18", 11, 20, 1_813_561_344),
        ("resnet50", 23, 53, 4_087_136_256),
        ("vgg16", 9, 13, 15_346_630_656),
        ("mobilenet_v2", 30, 52, 299_494_272),
        ("cv1_12", 12, 12, None),
    ],
)
def test_network(network: str, distinct: int, convolutions: int, macs: int | None) -> None:
    workloads = read_source(network)
    assert len(workloads) == len(set(workloads)) == distinct
    assert sum(w.multiplicity for w in workloads) == convolutions
    assert all(w.n == 1 and w.name for w in workloads)
    assert len({w.name for w in workloads}) == distinct
    if macs is not None:
        assert sum(w.macs * w.multiplicity for w in workloads) == macs


def test_networks_are_all_tested() -> None:
    assert set(BUILTIN_NETWORKS) == {"resnet18", "resnet50", "vgg16", "mobilenet_v2", "cv1_12"}


@pytest.mark.parametrize(
    ("network", "name", "text"),
    [
        ("resnet18", "conv1", "mb1ic3ih224oc64oh112kh7sh2ph3"),
        ("resnet18", "layer2.0.downsample.0", "mb1ic64ih56oc128oh28kh1sh2ph0"),
        # v1.5: the 3x3 strides, not the 1x1 before it.
        ("resnet50", "layer2.0.conv1", "mb1ic256ih56oc128oh56kh1ph0"),
        ("resnet50", "layer2.0.conv2", "mb1ic128ih56oc128oh28kh3sh2ph1"),
        ("vgg16", "features.24", "mb1ic512ih14oc512oh14kh3ph1"),
        ("mobilenet_v2", "features.14.conv.1.0", "g576mb1ic576ih14oc576oh7kh3sh2ph1"),
        ("mobilenet_v2", "features.18.0", "mb1ic320ih7oc1280oh7kh1ph0"),
        ("cv1_12", "cv4", "mb1ic64ih224oc64oh109kh7sh2ph0"),
    ],
)
def test_network_layer(network: str, name: str, text: str) -> None:
    (layer,) = [w for w in read_source(network) if w.name == name]
    assert layer == ConvWorkload.parse(text)


def test_mec_layers_have_no_padding() -> None:
    layers = read_source("cv1_12")
    assert [w.name for w in layers] == [f"cv{i}" for i in range(1, 13)]
    assert [w.oh for w in layers] == [55, 56, 111, 109, 20, 10, 222, 110, 54, 26, 12, 5]
    assert all(w.ph == w.pw == w.ph_r == w.pw_r == 0 for w in layers)


def test_dilated_layers() -> None:
    """Every rate of a DeepLabv3 at 256 and 512 channels, and its 1x1 layers, all "same"."""
    layers = read_source(str(Path(__file__).parent / "shapes" / "dilated.txt"))
    assert len(layers) == len(set(layers)) == len({w.name for w in layers})
    wide = {(w.oc, w.dh) for w in layers if w.kh == 3 and w.ic == w.oc and w.oh == 33}
    assert wide == {(oc, rate) for oc in (256, 512) for rate in (2, 4, 6, 12, 18)}
    assert {(w.ic, w.oc) for w in layers if w.kh == 1} >= {(2048, 256), (1280, 256), (512, 2048)}
    assert all((w.oh, w.ow) == (w.ih, w.iw) and w.dh == w.dw for w in layers)


# One workload, or none.


def test_one_descriptor() -> None:
    (w,) = read_source(' mb1_ic64ih56oc64kh3ph1n"a/b.c*2"')
    assert (w, w.name, w.multiplicity) == (WORKLOAD, "a/b.c", 2)
    assert read_source("_" + LINE) == [WORKLOAD]
    assert read_source(LINE + "n" + "x" * 300) == [WORKLOAD]  # too long for a file's name


def test_bad_descriptor_is_refused_as_one() -> None:
    with pytest.raises(WorkloadError, match=r"unknown token 'zz9' at character 4"):
        read_source("ic3zz9")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("resnt18", "did you mean resnet18?"),
        ("ResNet-50", "did you mean resnet50?"),
        ("mobilenet", "did you mean mobilenet_v2?"),
        ("vgg", "did you mean vgg16?"),
        ("no/such/file.txt", ""),
        ("", ""),
        ("\0", ""),
    ],
)
def test_unknown_source(source: str, hint: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_source(source)
    message = str(caught.value)
    assert message.startswith(f"source {source!r} is neither a network (resnet18, resnet50, vgg16")
    assert message.endswith(hint or "mb1ic64ih56oc64oh56kh3ph1")


@pytest.mark.parametrize("name", ["model.onnx", "MODEL.ONNX", "there/model.pt2"])
def test_models_are_no_workloads(name: str) -> None:
    with pytest.raises(SourceError, match=r"is a model; expected a network's"):
        read_source(name)


# Workload files.


def test_file(tmp_path: Path) -> None:
    source = write(
        tmp_path / "shapes",
        f"""# a comment
{LINE}n"first*2"   # why

\t{LINE} ic8ih5oc8kh3n"two words"
#{LINE}
g8ic8iw5oc8kw3n"a#b"
""",
    )
    workloads = read_source(source)
    assert [w.name for w in workloads] == ["first", "", "two words", "a#b"]
    assert [w.multiplicity for w in workloads] == [2, 1, 1, 1]
    assert workloads[0] == workloads[1] == WORKLOAD


@pytest.mark.parametrize("text", [f"\ufeff{LINE}", f"{LINE}\r\n", f"\r\n{LINE}\r\n# x\r\n"])
def test_file_from_another_system(tmp_path: Path, text: str) -> None:
    (tmp_path / "shapes").write_bytes(text.encode())
    assert read_source(str(tmp_path / "shapes")) == [WORKLOAD]


def test_options_are_ignored(tmp_path: Path) -> None:
    text = f"""--reset --dt=f32
--skip-impl=ref # a reason
-v1 --dir=FWD_D,BWD_D --attr-post-ops=relu+dw:k3s1p1, \\
                      add:f32:per_oc {LINE}
--attr-post-ops=     {LINE}
mb1ic64ih56\\
oc64oh56kh3ph1
--mb=16
"""
    assert read_source(write(tmp_path / "test_conv", text)) == [WORKLOAD] * 3


def test_a_network_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "resnet18", LINE)
    write(tmp_path / "ic3", LINE)
    assert len(read_source("resnet18")) == 11
    assert read_source("./resnet18") == read_source("ic3") == [WORKLOAD]


def test_included_files_are_relative_and_may_repeat(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "inner", LINE)
    write(tmp_path / "sub" / "outer", "ic8ih5oc8kh3\n--batch=inner\n")
    source = write(tmp_path / "all", "--reset --batch=sub/outer\n--batch=sub/inner\n")
    assert [w.ic for w in read_source(source)] == [8, 64, 64]


def test_an_included_file_may_be_empty(tmp_path: Path) -> None:
    write(tmp_path / "empty", "# nothing\n")
    assert read_source(write(tmp_path / "all", f"--batch=empty\n{LINE}")) == [WORKLOAD]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "\n# x\nic3ihh5"}, "{dir}/a:3: workload 'ic3ihh5': token 'ih' at character 4"),
        ({"a": "ic3\\\n\nih5"}, "{dir}/a:1: workload 'ic3ih5': oc is missing"),
        ({"a": "ic3id5oc3kd3"}, "{dir}/a:1: workload 'ic3id5oc3kd3': is 3-D"),
        ({"a": f'{LINE}n"open'}, "{dir}/a:1: workload '" + LINE + "n\"open': name '\"open'"),
        ({"a": ""}, "{dir}/a: holds no workload; expected lines like mb1ic64"),
        ({"a": "# only\n--reset\n"}, "{dir}/a: holds no workload"),
        ({"a": "\\\n"}, "{dir}/a: holds no workload"),
        (
            {"a": "--batch=b"},
            "{dir}/a:1: --batch=b: cannot read {dir}/b: No such file or directory",
        ),
        ({"a": "--batch=b", "b": "\n--batch=c"}, "{dir}/b:2: --batch=c: cannot read {dir}/c: No"),
        ({"a": "--batch=b", "b": "ic3"}, "{dir}/b:1: workload 'ic3': oc is missing"),
        ({"a": "--batch="}, "{dir}/a:1: --batch=: cannot read {dir}: Is a directory"),
        ({"a": "--batch=a"}, "{dir}/a:1: --batch=a goes in a circle ({dir}/a -> {dir}/a)"),
        (
            {"a": "--batch=b", "b": "--batch=./a"},
            "{dir}/b:1: --batch=./a goes in a circle ({dir}/a -> {dir}/b -> {dir}/a); remove it",
        ),
    ],
)
def test_refused_file(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(SourceError) as caught:
        read_source(str(tmp_path / "a"))
    assert str(caught.value).startswith(message.format(dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_circle_through_a_link_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", "--batch=link")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(SourceError, match="goes in a circle"):
        read_source(str(tmp_path / "a"))


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=f"cannot read {tmp_path}: Is a directory"):
        read_source(str(tmp_path))
    (tmp_path / "lib.so").write_bytes(b"\x7fELF\xff\xfe")
    with pytest.raises(SourceError, match=r"lib\.so: not a text file; expected lines like mb1ic64"):
        read_source(str(tmp_path / "lib.so"))

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SourceError, match=r"lib\.so: Permission denied"):
        read_source(str(tmp_path / "lib.so"))


# Duplicates.


def test_merge_duplicates() -> None:
    other = ConvWorkload.parse('ic8ih5oc8kh3n"other"')
    first, again = (ConvWorkload.parse(f"{LINE}n{name}") for name in ("a*2", "b*3"))
    merged = merge_duplicates([first, other, again, other])
    assert merged == [first, other]
    assert [(w.name, w.multiplicity) for w in merged] == [("a", 5), ("other", 2)]
    assert (first.multiplicity, again.multiplicity) == (2, 3)
    assert merge_duplicates([]) == []
