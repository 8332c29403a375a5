"""What the doctor says of embedders and vectors. What it says of folder, server, log and keys is in test_cli."""

import re
import shutil
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from conftest import MASTER_KEY

from memfold import MiniLMEmbedder, StaticEmbedder
from memfold.api import doctor
from memfold.minilm import MODELS
from memfold.settings import Environment, Settings


class Elsewhere:
    """An embedder that memfold does not know."""

    name = "elsewhere"

    def encode(self, texts):
        return np.eye(1, 8).repeat(len(texts), axis=0)


def examine(place):
    environment = Environment(master_key=MASTER_KEY, target=None, runtime_folder=None)
    return {check.name: check for check in doctor.examine(place, environment, Settings(), lambda: datetime.now(UTC))}


@pytest.fixture
def url(server_url):
    """A database of this test's own, with nothing in it: the doctor looks at all tenants."""
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute("CREATE DATABASE doctor")
        yield server_url.replace("/postgres?", "/doctor?")
        owner.execute("DROP DATABASE doctor WITH (FORCE)")


@pytest.fixture
def own_store(url, make_store):
    """Opens stores in the database of this test. They are closed before it is dropped."""
    stores = []

    def make(**options):
        stores.append(make_store(target=url, **options))
        # The keyring has one master key a database, so all tenants of it are sealed under the one of the tests.
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def copied(tmp_path):
    """A copy of the models, to be treated badly."""
    return shutil.copytree(MODELS, tmp_path / "models")


def test_both_embedders_are_loaded_checked_and_measured(tmp_path):
    checks = examine(tmp_path / "nothing")

    for name, model, dimensions in [
        ("embedder", "all-MiniLM-L6-v2-int8", 384),
        ("static embedder", "all-MiniLM-L6-v2-static-256", 256),
    ]:
        found = checks[name].found
        assert found.startswith(f"{model}, {dimensions} dimensions, its files are as shipped; loaded in ")
        assert re.search(r"[\d,]+ texts a second$", found)
    assert rate(checks["static embedder"]) > rate(checks["embedder"])


def rate(check):
    return int(re.search(r"([\d,]+) texts a second", check.found)[1].replace(",", ""))


@pytest.mark.parametrize(
    ("kind", "folder", "file"), [(MiniLMEmbedder, "minilm", "tokenizer.json"), (StaticEmbedder, "static", "embeddings.npy")]
)
def test_a_model_file_that_was_altered_or_lost_fails(copied, kind, folder, file):
    path = copied / folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    altered = doctor._embedder("embedder", kind(path.parent))
    path.unlink()
    lost = doctor._embedder("embedder", kind(path.parent))

    assert {altered.verdict, lost.verdict} == {"fail"}
    assert f"{file} is not the file that was shipped" in altered.found
    assert f"{file} cannot be read" in lost.found
    assert "install memfold again" in altered.advice


def test_an_embedder_that_cannot_run_fails_with_the_reason():
    class Broken:
        name = "broken"

        def encode(self, texts):
            raise ImportError("no onnxruntime for this machine")

    check = doctor._embedder("embedder", Broken())

    assert check.verdict == "fail"
    assert "no onnxruntime for this machine" in check.found


def test_a_machine_too_slow_to_embed_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "SLOW_TEXTS_A_SECOND", 10**9)
    assert doctor._embedder("static embedder", StaticEmbedder()).verdict == "warn"


def test_vectors_are_counted_by_model_and_those_that_wait_over_all_tenants(url, own_store):
    ours = own_store(embedder=MiniLMEmbedder())
    forgotten = ours.remember("one that is forgotten", session_id="s")
    ours.remember_many(["tea", "coffee"], session_id="s")
    ours.flush()
    ours.forget(forgotten.id)

    check = examine(url)["vectors"]
    assert (check.verdict, check.advice) == ("ok", None)
    assert check.found.startswith("2 of all-MiniLM-L6-v2-int8, all tenants; 0 events wait for one")
    assert re.search(r"[\d.]+ MiB$", check.found)

    other = own_store(tenant="another tenant", embedder=Elsewhere())
    other.remember_many(["tea", "coffee", "milk"], session_id="s")
    other.flush()

    check = examine(url)["vectors"]
    assert check.verdict == "warn"
    assert "2 of all-MiniLM-L6-v2-int8, 3 of elsewhere" in check.found
    assert "3 events wait" in check.found
    assert "left over" in check.advice


def test_vectors_of_what_was_deferred_are_not_left_over(url, own_store):
    store = own_store(embedder=MiniLMEmbedder())
    store.remember_many(["tea", "coffee"], session_id="s", embedding="deferred")
    store.flush()

    check = examine(url)["vectors"]
    assert check.found.startswith("2 of all-MiniLM-L6-v2-int8, 2 of all-MiniLM-L6-v2-static-256, all tenants; 0 events wait")
    assert (check.verdict, check.advice) == ("ok", None)


def test_before_anything_is_stored_there_are_no_vectors_to_speak_of(url, own_store):
    assert "vectors" not in examine(url)
    own_store()
    assert examine(url)["vectors"].found.startswith("none, all tenants; 0 events wait")
