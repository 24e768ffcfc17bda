"""auth_file: whose password is whose, by a file that changes while it is read."""

import argon2
import pytest

from gateway import Accept, ConfigError, Credentials, Reject, Stages, passwords
from gateway.smtp.sasl import make_keys
from gateway.testing.build import session

HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=64)
CONF = "auth_file: {}\n"


def keep(folder, login, password, *, locked=False, scram=None):
    kept = passwords.Kept(login, HASHER.hash(password), locked, scram)
    passwords.change(folder / "passwords", login, lambda _: kept)


async def said(chain, login, password, mechanism="PLAIN"):
    asked = Credentials(mechanism, login, password)
    answer = (await chain.ask(Stages.authenticate, session(), asked)).value
    return getattr(answer, "reason", "accepted") if isinstance(answer, Reject | Accept) else answer


@pytest.fixture
def chain(chain_of, tmp_path):
    keep(tmp_path, "ann", "secret", scram=make_keys("secret", 4096))
    keep(tmp_path, "joe", "other")
    keep(tmp_path, "eve", "third", locked=True)
    return chain_of(CONF, "auth_file")


@pytest.mark.parametrize(
    ("login", "password", "answer"),
    [
        ("ann", "secret", "accepted"),
        ("joe", "other", "accepted"),
        ("ann", "other", "credentials"),
        ("ann", "", "credentials"),
        ("Ann", "secret", None),
        ("nobody", "secret", None),
        ("", "", None),
        ("eve", "third", "locked"),
        ("eve", "secret", "credentials"),
    ],
)
async def test_a_password_is_its_logins_alone(chain, login, password, answer):
    assert await said(chain, login, password) == answer


async def test_a_change_counts_at_once(chain, tmp_path):
    keep(tmp_path, "ann", "changed")
    assert await said(chain, "ann", "secret") == "credentials"
    assert await said(chain, "ann", "changed") == "accepted"
    passwords.change(tmp_path / "passwords", "ann", lambda _: None)
    assert await said(chain, "ann", "changed") is None


@pytest.mark.parametrize(("change", "answer"), [(True, "locked"), (False, None)], ids=["locked", "removed"])
async def test_a_login_that_goes_while_its_password_is_checked_is_refused(
    chain, tmp_path, monkeypatch, change, answer
):
    verify = argon2.PasswordHasher.verify

    def while_it_is_checked(hasher, hashed, password):
        passwords.change(
            tmp_path / "passwords", "ann", lambda kept: passwords.locked(kept, lock=True) if change else None
        )
        return verify(hasher, hashed, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", while_it_is_checked)
    assert await said(chain, "ann", "secret") == answer


async def test_keys_for_scram_are_those_of_the_file(chain):
    assert (await chain.ask(Stages.scram_keys, session(), "ann")).value.iterations == 4096
    assert (await chain.ask(Stages.scram_keys, session(), "joe")).value is None
    assert (await chain.ask(Stages.scram_keys, session(), "nobody")).value is None


async def test_a_proof_without_keys_is_none(chain):
    # What `smtp.sasl` has proved for made-up keys must not open a login that has none.
    assert await said(chain, "ann", None, "SCRAM-SHA-256") == "accepted"
    assert await said(chain, "joe", None, "SCRAM-SHA-256") == "credentials"


async def test_a_file_that_is_gone_is_a_doubt(chain, tmp_path):
    (tmp_path / "passwords").unlink()
    answer = await chain.ask(Stages.authenticate, session(), Credentials("PLAIN", "ann", "secret"))
    assert answer.failed
    assert answer.value.status == "4.3.0"


@pytest.mark.parametrize(
    "line", ["ann", "ann:", "ann:secret", ":$argon2id$x", "a b:$argon2id$x", "a:$argon2id$x:y"]
)
def test_a_line_that_is_none_refuses_the_start(chain_of, tmp_path, line):
    (tmp_path / "passwords").write_text(f"# logins\n{line}\n")
    with pytest.raises(ConfigError, match="passwords:2"):
        chain_of(CONF, "auth_file")


def test_the_file_must_be_there(chain_of):
    with pytest.raises(ConfigError, match=r"auth_file\.file: .*passwords: No such file"):
        chain_of(CONF, "auth_file")
