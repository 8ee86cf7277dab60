"""``metamae.load``: the embeddings are those of the trained method, whatever form data come in."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metamae
from metamae import CheckpointError, ConfigError, DataError, InputError, MetamaeError, load_dataset
from metamae.artefact import Encoder, load
from metamae.data.own import open_data
from metamae.errors import MissingLibraryError
from metamae.evaluation.features import extract_features
from metamae.training.card import CARD, GENERATED
from metamae.training.checkpoint import Checkpoint
from metamae.training.model_folder import MODEL, WEIGHTS
from metamae.training.run_folder import CHECKPOINT, DATA, load_method
from tests.attacks.harness import Attack, cuts, damage, flips
from tests.metamae.artefact.making import config_of, train, untrained

MOTIONS = load_dataset("basic_motions")
RAW = np.asarray(MOTIONS.need("test").arrays["signal"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("basic_motions", tmp_path_factory.mktemp("encoder") / "run")


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    return load(run)


def test_embeddings_are_the_features_of_the_trained_method(run: Path, encoder: Encoder) -> None:
    method = load_method(run / CHECKPOINT, MOTIONS.inputs)
    expected = extract_features(method, MOTIONS.need("test")).numpy()
    found = encoder.embed(RAW)
    assert found.dtype == np.float32
    assert found.shape == (40, 16)
    assert np.array_equal(found, expected)
    assert np.array_equal(encoder.embed(MOTIONS.need("test")), expected)
    assert np.array_equal(encoder.embed({"signal": torch.from_numpy(RAW)}), expected)
    assert np.array_equal(encoder.embed(RAW.tolist()), expected)
    assert metamae.load is load


def test_order_is_kept_and_batches_do_not_matter(encoder: Encoder) -> None:
    order = np.random.default_rng(0).permutation(len(RAW))
    whole = encoder.embed(RAW)
    np.testing.assert_allclose(encoder.embed(RAW[order], batch_size=7), whole[order], atol=1e-5)
    assert np.ptp(whole, axis=0).min() > 1e-3, "rows differ, or their order would not show"


def test_tokens_have_features_too(encoder: Encoder) -> None:
    tokens = encoder.embed_tokens(RAW)
    assert tokens.shape == (40, 25, 16)
    np.testing.assert_allclose(tokens.mean(1), encoder.embed(RAW), atol=1e-5)


def test_other_lengths_can_be_embedded(encoder: Encoder) -> None:
    """As everywhere: what a token holds is fixed, how many there are is not."""
    assert encoder.embed(RAW[:, :, :60]).shape == (40, 16)


def test_the_module_takes_raw_tensors(encoder: Encoder) -> None:
    """Unscaled, of any type; its weights are the method's, and gradients reach them."""
    x = torch.from_numpy(RAW)
    expected = torch.from_numpy(encoder.embed(RAW))
    assert torch.equal(encoder.module(x), expected)
    assert torch.equal(encoder.module({"signal": x}), expected)
    assert torch.equal(encoder.module(x.double()), expected)
    assert torch.equal(encoder.module.token_features(x).mean(1), expected)
    encoder.module(x[:2]).sum().backward()
    grads = {name: p.grad is not None for name, p in encoder.module.named_parameters()}
    assert grads
    assert all(grads.values()), "nothing in it that features do not need"
    own = {p.data_ptr() for p in encoder.method.network.parameters()}
    assert {p.data_ptr() for p in encoder.module.parameters()} < own
    assert not any("decoder" in name for name in encoder.module.state_dict())
    with pytest.raises(InputError, match=r"expected one tensor for each of \['signal'\], got 2"):
        encoder.module(x, x)
    with pytest.raises(InputError, match=r"'signal' of shape \(B, 6, any\), got \(40, 100, 6\)"):
        encoder.module(x.transpose(1, 2))


def test_several_inputs(tmp_path: Path) -> None:
    data = load_dataset("captioned")
    encoder = untrained(data, config_of("captioned"))
    rows = data.need("test")
    arrays = {name: np.asarray(array[:9]) for name, array in rows.arrays.items()}
    found = encoder.embed(arrays)
    expected = extract_features(encoder.method, rows)[:9].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    tensors = [torch.from_numpy(arrays[spec.name]) for spec in data.inputs]
    np.testing.assert_allclose(encoder.module(*tensors).detach().numpy(), found, atol=1e-5)
    with pytest.raises(InputError, match=r"mapping of arrays by the names .*'caption'\], got nd"):
        encoder.embed(arrays["image"])
    tokens = encoder.arrays(arrays)
    assert {name: x.dtype.name for name, x in tokens.items()} == {
        "image": "float32",
        "caption": "int64",
    }


def test_a_reconstruction_copies_what_is_seen(encoder: Encoder) -> None:
    """In the units of the data; what is masked is predicted, for any batch size the same."""
    found = encoder.reconstruct(RAW, seed=3)
    values, masked = found.values["signal"], found.masked["signal"]
    assert values.shape == RAW.shape
    assert masked.shape == (40, 25)
    assert np.all(masked.sum(1) == masked[0].sum())
    assert 0 < masked.mean() < 1
    steps = np.repeat(masked, 4, axis=1)[:, None].repeat(6, axis=1)
    np.testing.assert_allclose(values[~steps], RAW[~steps], atol=1e-4)
    assert np.abs(values[steps] - RAW[steps]).mean() > 0.1
    again = encoder.reconstruct(RAW, seed=3, batch_size=7)
    assert np.array_equal(again.masked["signal"], masked)
    np.testing.assert_allclose(again.values["signal"], values, atol=1e-4)
    assert not np.array_equal(encoder.reconstruct(RAW, seed=4).masked["signal"], masked)
    with pytest.raises(InputError, match=r"token grid \(25,\), got \(15,\)"):
        encoder.reconstruct(RAW[:, :, :60])


def test_a_method_without_a_decoder_reconstructs_nothing() -> None:
    encoder = untrained(MOTIONS, config_of("basic_motions", method="emix"))
    assert encoder.embed(RAW).shape == (40, 16)
    with pytest.raises(ConfigError, match=r"expected a run of metamae or mae .*, got one of emix"):
        encoder.reconstruct(RAW)


def broken(value: float) -> Any:
    x = RAW.copy()
    x[3, 1, 2] = value
    return x


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (RAW[0], InputError, r"expected input 'signal' of shape \(B, 6, any\), got \(6, 100\)"),
        (RAW[:, :5], InputError, r"shape \(B, 6, any\), got \(40, 5, 100\)"),
        (RAW[:, :, :99], InputError, "positive multiple of the token size, got 99 and 4"),
        (RAW[:0], DataError, "expected one example or more, got none"),
        (broken(np.nan), DataError, "expected finite values in input 'signal', got nan in row 3"),
        (broken(np.inf), DataError, "got inf in row 3"),
        (RAW.astype(str), DataError, "expected real numbers in input 'signal'"),
        (RAW.astype(complex), DataError, "expected real numbers in input 'signal'"),
        (RAW.astype(object), DataError, "all examples of one shape, got objects such as float"),
        ([RAW[0], RAW[1, :, :50]], DataError, "expected examples of one shape .*, got several"),
        (3.0, DataError, "expected an array as input 'signal', got float"),
        (None, DataError, "expected an array as input 'signal', got NoneType"),
        ({"x": RAW}, InputError, r"expected a mapping with inputs \['signal'\], got \['x'\]"),
        (MOTIONS, DataError, "expected one partition .*; pass data.need"),
        ("some.csv", DataError, r"expected arrays in \.npy or \.npz .*, got 'some.csv'"),
        ("no.npy", DataError, "no.npy"),
        (
            load_dataset("digits").need("test"),
            InputError,
            "data like 'basic_motions' .*, got other",
        ),
    ],
)
def test_unfit_data_are_refused_in_one_line(
    encoder: Encoder, data: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        encoder.embed(data)
    assert isinstance(caught.value, MetamaeError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_a_batch_size_is_a_whole_number(encoder: Encoder, size: Any) -> None:
    with pytest.raises(ConfigError, match="expected a batch size of 1 or more"):
        encoder.embed(RAW, batch_size=size)


def test_a_file_of_arrays_is_read(encoder: Encoder, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RAW)
    assert np.array_equal(encoder.embed(tmp_path / "x.npy"), encoder.embed(RAW))


def test_own_tables_are_read_as_in_training(tmp_path: Path) -> None:
    """Columns in any order, gaps and categories by the run's recipe, rows in theirs."""
    pandas = pytest.importorskip("pandas")
    draw = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "name": [f"row {n}" for n in range(60)],
            "size": draw.normal(5, 2, 60),
            "mass": np.where(draw.random(60) < 0.3, np.nan, draw.normal(size=60)),
            "age": draw.integers(1, 90, 60),
            "kind": draw.choice(["a", "b", "c"], 60),
            "place": draw.choice(["x", "y"], 60),
            "y": draw.choice(["no", "yes"], 60),
        }
    )
    data = open_data(frame, label="y", ids="name").dataset
    encoder = untrained(data, config_of("tabular"))
    encoder.save(tmp_path / "saved")
    card = (tmp_path / "saved" / CARD).read_text()
    assert (
        'encoder.embed("rows.csv")  # or a data frame, with the columns size, mass, age, ki' in card
    )
    encoder = load(tmp_path / "saved")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    mixed = frame[["place", "y", "kind", "age", "name", "mass", "size"]]
    expected = encoder.embed(frame)
    assert expected.shape == (60, 16)
    np.testing.assert_allclose(encoder.embed(tmp_path / "rows.csv"), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(mixed), expected, atol=1e-5)
    backwards = encoder.read(mixed[::-1], ids="name", label="y")
    assert backwards.ids == list(frame["name"][::-1])
    assert encoder.description.task is not None
    assert backwards.partition.labels is not None
    classes = np.asarray(encoder.description.task.classes)
    assert list(classes[backwards.partition.labels]) == list(frame["y"][::-1])
    np.testing.assert_allclose(encoder.embed(backwards.partition), expected[::-1], atol=1e-5)
    batch = [torch.from_numpy(x) for x in encoder.arrays(frame).values()]
    np.testing.assert_allclose(encoder.module(*batch).detach().numpy(), expected, atol=1e-5)
    values = encoder.reconstruct(frame).values["row"]
    assert values.shape == (60, 3)
    with pytest.raises(DataError, match="1 missing: 'mass'"):
        encoder.embed(frame.drop(columns="mass"))


# Folders


def test_a_saved_folder_holds_all_that_is_needed(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "deep" / "saved")
    folder = tmp_path / "deep" / "saved"
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD, MODEL, WEIGHTS])
    again = load(folder)
    assert np.array_equal(again.embed(RAW), encoder.embed(RAW))
    assert again.record.to_dict() == encoder.record.to_dict()
    found, expected = (e.reconstruct(RAW).values["signal"] for e in (again, encoder))
    assert np.array_equal(found, expected), "the decoder is kept too"
    assert repr(again) == (
        "Encoder(metamae on 'basic_motions', 2 steps: signal (N, 6, 100) -> (N, 16))"
    )
    assert np.array_equal(pickle.loads(pickle.dumps(again)).embed(RAW), encoder.embed(RAW))


def test_a_run_folder_needs_no_checkpoint(run: Path, encoder: Encoder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / CHECKPOINT).unlink()
    found = load(folder)
    assert np.array_equal(found.embed(RAW), encoder.embed(RAW))
    assert found.record.to_dict() == encoder.record.to_dict()


def test_the_checkpoint_counts_where_there_is_one(run: Path, tmp_path: Path) -> None:
    """The model beside it may be of an earlier step, if the run was killed."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    trained = Checkpoint.load(folder / CHECKPOINT)
    zeros = {name: torch.zeros_like(value) for name, value in trained.model.items()}
    Checkpoint(**vars(trained) | {"model": zeros, "step": 1}).save(folder / CHECKPOINT)
    assert load(folder).record.step == 1
    assert not load(folder).embed(RAW).any()


def test_an_earlier_run_is_known_by_the_name_of_its_data(run: Path, tmp_path: Path) -> None:
    """Folders of earlier revisions hold no data.json."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / DATA).unlink()
    assert np.array_equal(load(folder).embed(RAW), load(run).embed(RAW))
    trained = Checkpoint.load(folder / CHECKPOINT)
    own = config_of("basic_motions").to_dict() | {"dataset": "mine"}
    Checkpoint(**vars(trained) | {"config": metamae.Config.from_dict(own)}).save(
        folder / CHECKPOINT
    )
    with pytest.raises(CheckpointError, match=r"expected data.json in .*'mine' is no data set"):
        load(folder)


@pytest.mark.parametrize("content", [None, "a folder", "other files"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "here"
    if content:
        folder.mkdir()
    if content == "other files":
        (folder / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"expected a run folder with checkpoint.pt, or a"):
        load(folder)
    with pytest.raises(ConfigError, match="expected a device such as cpu or cuda, got 'tpu'"):
        load(folder, device="tpu")


@pytest.mark.parametrize("name", [WEIGHTS, MODEL])
def test_damaged_files_are_refused_or_change_nothing(
    name: str, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path)
    path = tmp_path / name

    def act() -> Any:
        found = load(tmp_path)
        return found.record.to_dict(), {
            key: x.numpy().tobytes() for key, x in found.method.state_dict().items()
        }

    attack = Attack(f"flipped: {name}", act, act())
    found = damage(attack, path, flips(path.read_bytes(), 40, seed=0))
    found += damage(attack, path, cuts(path.read_bytes()))
    assert found["refused"] > 40
    path.unlink()
    with pytest.raises(CheckpointError, match=r"^expected [^\n]*$"):
        load(tmp_path)


def test_a_damaged_description_is_refused(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    expected = load(folder).record.to_dict()
    attack = Attack("flipped: data.json", lambda: load(folder).record.to_dict(), expected)
    path = folder / DATA
    assert damage(attack, path, flips(path.read_bytes(), 20, seed=0))["refused"] > 15
    for text in ("[]", "{}", "null", '{"format": 1}', "x"):
        path.write_text(text)
        assert attack.try_once(text) == "refused"


def test_a_method_with_one_tensor_under_two_names_is_saved(tmp_path: Path) -> None:
    """Learned settings are parameters of the method and of its adapter."""
    learning = config_of("basic_motions", "learn.settings=[step_size]")
    encoder = untrained(MOTIONS, learning)
    encoder.save(tmp_path)
    again = load(tmp_path)
    assert np.array_equal(again.embed(RAW), encoder.embed(RAW))
    found = again.reconstruct(RAW).values["signal"]
    assert np.array_equal(found, encoder.reconstruct(RAW).values["signal"])


# The card


def test_the_card_says_what_it_is_and_how_to_load_it(run: Path, tmp_path: Path) -> None:
    text = (run / CARD).read_text()
    assert text.startswith("---\nlibrary_name: metamae\n")
    for part in (
        "# metamae on basic_motions",
        "40 examples of `basic_motions`, fingerprint `",
        "input `signal`: array (N, channels 6, length 100); scaled inside",
        "classification of Standing, Running, Walking, Badminton",
        "licence of the data: BSD-3-Clause (the package's",
        "seed 0, 2 steps of 20 examples",
        'metamae.load("THIS/FOLDER")',
        "z is (N, 16)",
    ):
        assert part in text
    program = text.split("```python\n")[1].split("```")[0].replace("THIS/FOLDER", str(run))
    names: dict[str, Any] = {"x": RAW}
    exec(compile(program, CARD, "exec"), names)  # our own text
    assert names["z"].shape == (40, 16)


def test_a_card_that_a_person_signed_stays(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    card = tmp_path / CARD
    card.write_text(card.read_text() + "more\n")
    encoder.save(tmp_path)
    assert "more" not in card.read_text()
    card.write_text(card.read_text().replace(GENERATED + "\n", "") + "mine\n")
    encoder.save(tmp_path)
    assert card.read_text().endswith("mine\n")


# The hub


def test_hugging_faces_manner(encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    encoder.save_pretrained(tmp_path / "a")
    encoder.save_pretrained(tmp_path / "b", push_to_hub=False)  # through the mixin
    for name in ("a", "b"):
        found = Encoder.from_pretrained(tmp_path / name)
        assert np.array_equal(found.embed(RAW), encoder.embed(RAW))
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted([CARD, MODEL, WEIGHTS])
    assert "library_name: metamae" in (tmp_path / "b" / CARD).read_text()


def test_a_repository_is_fetched_and_pushed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: the hub's own functions stand still, and are asked for the right files."""
    huggingface = pytest.importorskip("huggingface_hub")
    from metamae.artefact import hub

    encoder.save(tmp_path / "there")
    asked: dict[str, Any] = {}

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path / "there")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(
        huggingface.hub_mixin, "hf_hub_download", lambda **_: str(tmp_path / "there" / MODEL)
    )
    found = Encoder.from_pretrained("me/mine", revision="v1")
    assert np.array_equal(found.embed(RAW), encoder.embed(RAW))
    assert (asked["repo_id"], asked["revision"]) == ("me/mine", "v1")
    assert sorted(asked["allow_patterns"]) == sorted([CARD, MODEL, WEIGHTS])

    class Api:
        def __init__(self, token: str | None = None) -> None:
            asked["token"] = token

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, repo_id: str, folder_path: Any, **_: Any) -> str:
            asked["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface.hub_mixin, "HfApi", Api)
    assert encoder.push_to_hub("me/mine", token="t") == "https://hub/me/mine"
    assert (asked["token"], asked["files"]) == ("t", sorted([CARD, MODEL, WEIGHTS]))


def test_what_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from metamae.artefact import hub

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(hub.HubFolder, "from_pretrained", fail)
    with pytest.raises(CheckpointError, match=r"a repository .* got 'me/mine' \(no network\)$"):
        Encoder.from_pretrained("me/mine")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'metamae\[hub\]'"):
        Encoder.from_pretrained("me/mine")
