"""The account: from the environment or a file of one's own, and never to be seen."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import traceback

import pytest

from pipeline.run import UserError
from pipeline.survey import credentials
from pipeline.survey.credentials import PASSWORD, USER, Account, Secret

WORD = "p=ss #wörd"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv(USER, raising=False)
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def file(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "account"
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    return write


def test_the_environment_comes_first(monkeypatch, file):
    monkeypatch.setenv(USER, "eve")
    monkeypatch.setenv(PASSWORD, WORD)
    account = credentials.read(file("user = adam\npassword = other\n"))
    assert account.user == "eve" and account.password.reveal() == WORD


@pytest.mark.parametrize(("there", "absent"), [(USER, PASSWORD), (PASSWORD, USER)])
def test_half_an_environment_is_no_account(monkeypatch, file, there, absent):
    monkeypatch.setenv(there, WORD)
    with pytest.raises(UserError, match=f"^{absent} is not set") as caught:
        credentials.read(file("user = adam\npassword = other\n"))
    assert WORD not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [f"user=adam\npassword={WORD}", f"# mine\n\n  USER = adam \r\n Password = {WORD} \r\n#user=x\n",
     f"\ufeffuser = adam\npassword = {WORD}\nproxy = none\n"],
)  # fmt: skip
def test_a_file_of_two_lines_with_comments(file, text):
    account = credentials.read(file(text))
    assert account.user == "adam" and account.password.reveal() == WORD


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_read_is_refused(file, mode):
    path = file(f"user = adam\npassword = {WORD}", mode)
    with pytest.raises(UserError, match=rf"mode {mode:04o}\); chmod 600") as caught:
        credentials.read(path)
    assert WORD not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "user = adam", f"password = {WORD}", f"adam\n{WORD}\n", f"user =\npassword = {WORD}",
     f"#user = a\npassword={WORD}"],
)  # fmt: skip
def test_a_file_that_lacks_a_line_is_refused_and_not_quoted(file, text):
    with pytest.raises(UserError, match="lacks user or password") as caught:
        credentials.read(file(text))
    assert WORD not in str(caught.value)


def test_no_account_says_how_to_give_one(tmp_path):
    for absent in (None, tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=f"export {USER} and .* chmod 600") as caught:
            credentials.read(absent)
        assert "\n" not in str(caught.value)


def test_the_default_file_is_below_home(tmp_path):
    path = tmp_path / "home/.config/ugriz/sciserver"
    path.parent.mkdir(parents=True)
    path.write_text("user = adam\npassword = word")
    path.chmod(0o600)
    assert credentials.read().user == "adam"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_refused(file):
    path = file("user = adam\npassword = word")
    os.chown(path, 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        credentials.read(path)


def test_the_password_is_in_no_text_of_the_account(caplog):
    account = Account("adam", Secret(WORD))
    texts = [repr(account), str(account), f"{account} {account.password}", f"{account!r:>50}",
             str([account, {1: account.password}]), str(vars(account.__class__)),
             repr(account._asdict()), str(dir(account.password))]  # fmt: skip
    with caplog.at_level(logging.INFO):
        logging.getLogger("ugriz").info("%s", account)
    try:
        raise ValueError(account)
    except ValueError:
        texts += [traceback.format_exc(), caplog.text]
    assert not any(WORD in text for text in texts)


@pytest.mark.parametrize(
    "save", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, vars], ids=lambda f: f.__name__
)
def test_the_password_cannot_be_saved_or_copied(save):
    with pytest.raises(TypeError):
        save(Secret(WORD))
    if save is pickle.dumps:
        with pytest.raises(TypeError):
            save(Account("adam", Secret(WORD)))
