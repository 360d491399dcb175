"""`python -m pipeline.query` on services: one table whatever the engine, no secrets, one line."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trustme
from services import Faults
from test_casjobs import Running, start, survey  # noqa: F401 (fixtures)

from pipeline import query

FAST = ["--timeout=0.7", "--query-seconds=1", "--longest-wait=0.02", "--poll=0.02",
        "--requests-per-minute=1000000"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows"), [("labelled", 60), ("unlabelled", 90), ("fields", 91), ("morphology", 40)]
)
def test_three_engines_write_the_same_bytes(start, survey, tmp_path, monkeypatch, name, rows):
    monkeypatch.setattr(query, "PER_MINUTE", 1e6)
    services, hashes = start(), set()
    for engine, source in (("duckdb", survey["database"]), ("casjobs", services.casjobs),
                           ("skyserver", services.skyserver)):  # fmt: skip
        output = tmp_path / engine / "out.parquet"
        query.main([f"--engine={engine}", f"--source={source}", f"--sql=queries/{name}.sql",
                    f"--output={output}", f"--login={services.login}", *FAST])  # fmt: skip
        hashes.add(hashlib.sha256(output.read_bytes()).hexdigest())
        assert pq.read_metadata(output).num_rows == rows
    assert len(hashes) == 1


WORD = "pässword=with #signs"


@pytest.fixture
def account(tmp_path):
    """A file of one's own."""
    path = tmp_path / "account"
    path.write_text(f"user = astronomer\npassword = {WORD}\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def bare():
    """An environment without an account."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SCISERVER")}


@pytest.mark.parametrize("ends", ["well", "with an error", "killed"])
def test_neither_password_nor_token_is_left_anywhere(start, tmp_path, account, ends):
    faults = Faults(0.15, 3, ("500", "html", "reset", "expired", "cut", "503"))
    services = start(accounts={"astronomer": WORD}, faults=faults, token_seconds=1, delay=0.03)
    tokens, new = [], services._state.new_token
    services._state.new_token = lambda *of: tokens.append(new(*of)) or tokens[-1]
    sql = tmp_path / "q.sql"
    sql.write_text(f"SELECT objID, {'nope' if ends == 'with an error' else 'ra'} FROM PhotoObjAll")
    output = tmp_path / "out" / "table.parquet"
    command = [
        sys.executable, "-m", "pipeline.query", "--engine=casjobs", f"--source={services.casjobs}",
        f"--login={services.login}", f"--sql={sql}", f"--output={output}", "--page-rows=30",
        f"--credentials={account}", *FAST,
    ]  # fmt: skip
    with open(tmp_path / "said", "wb") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said, env=bare())
        seen = set()
        while running.poll() is None:
            with contextlib.suppress(OSError):  # it may just have ended
                seen |= {Path(f"/proc/{running.pid}/{part}").read_bytes()
                         for part in ("cmdline", "environ")}  # fmt: skip
            time.sleep(0.005)  # leave the processor to it
            if ends == "killed" and list(output.parent.glob(".table.casjobs/page-*")):
                running.kill()
        assert running.returncode == {"well": 0, "with an error": 1, "killed": -9}[ends]
    account.unlink()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and services.work not in
            path.parents]  # fmt: skip
    names = {path.name for path in left}
    assert {"said", "job.json", ".casjobs-pace"} <= names
    assert ("table.parquet.provenance.json" in names) == (ends == "well")
    secrets = [word.encode() for word in (WORD, json.dumps(WORD)[1:-1], *tokens)]
    assert len(tokens) >= 1
    for content in [*(path.read_bytes() for path in left), *seen]:
        assert not any(secret in content for secret in secrets)


RUNNER = """
import gc, json, os, sys, traceback
from pipeline import query, run
gc.freeze()
for number, (argv, environment) in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        said = os.open(f"{number}.said", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(environment)
        sys.argv = ["query", *argv]
        try:  # as the interpreter ends, but without taking all modules down
            run.start(query.main)
        except SystemExit as end:
            print(end.code, file=sys.stderr, flush=True)
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
HERE = "http://127.0.0.1:9"  # the port `discard`, where nobody listens
CAS, SKY = "casjobs", "skyserver"
BAD = {
    "a wrong password": (CAS, {}, {"SCISERVER_PASSWORD": "guess"},
                         "does not let astronomer in; check the user name and the password"),
    "no account": (CAS, {}, {"SCISERVER_USER": "", "SCISERVER_PASSWORD": ""},
                   "CasJobs needs a SciServer account and .* is not there; export"),
    "half an account": (CAS, {}, {"SCISERVER_USER": ""}, "SCISERVER_USER is not set"),
    "an account that all can read": (CAS, {"credentials": "open"},
                                     {"SCISERVER_USER": "", "SCISERVER_PASSWORD": ""},
                                     r"open: others may read it \(mode 0644\); chmod 600"),
    "an unknown context": (CAS, {"context": "DR99"}, {}, "CasJobs: Context DR99 does not exist"),
    "a context that is none": (CAS, {"context": "a/b"}, {}, "--context a/b: give a name"),
    "an address that is not there": (CAS, {"source": "{url}/no"}, {}, "source is to be CasJobs'"),
    "a file for an address": (CAS, {"source": "survey.duckdb"}, {}, "give an http"),
    "an address of another kind": (CAS, {"source": "ftp://127.0.0.1"}, {}, "give an http"),
    "a login that is none": (CAS, {"login": "{casjobs}"}, {}, "check query: login"),
    "no login": (CAS, {"login": None}, {}, "--login: the engine casjobs needs"),
    "no network": (CAS, {"source": HERE, "login": HERE}, {}, "cannot be reached .* VPN and proxy"),
    "a proxy that answers pages": (CAS, {}, {"HTTP_PROXY": "{pages}"},
                                   r'sent a web page \("Maintenance"\).* proxy or login page'),
    "a proxy that is not there": (CAS, {}, {"HTTP_PROXY": HERE}, "cannot be reached .*proxy"),
    "a wrong clock": (CAS, {"login": "{late}/login-portal/keystone/v3/tokens"},
                      {"SSL_CERT_FILE": "{ca}"}, "certificate has expired.*clock right"),
    "a full mydb": (CAS, {"source": "{full}", "login": "{full_login}"}, {},
                    "labelled.sql: CasJobs: Could not allocate space.*drop tables of your MyDB"),
    "pages of no rows": (CAS, {"page-rows": 0}, {}, "--page-rows 0: give a number above 0"),
    "no patience": (CAS, {"timeout": 0}, {}, "--timeout 0.0: give a number above 0"),
    "no tries": (CAS, {"tries": 0}, {}, "--tries 0: give a number above 0"),
    "polls before now": (CAS, {"poll": -1}, {}, "--poll -1.0: give seconds, above 0"),
    "no file of sql": (CAS, {"sql": "absent.sql"}, {}, "absent.sql: no such file; check the name"),
    "no sql": (CAS, {"sql": None}, {}, "--sql goes with the engines"),
    "sql that is none": (CAS, {"sql": "SELEC objID FROM x"}, {}, "q.sql: line 1, column 13: SQL"),
    "sql without an id": (CAS, {"sql": "SELECT ra FROM PhotoObjAll"}, {}, "q.sql: has no column"),
    "sorted sql": (CAS, {"sql": "SELECT objID FROM T ORDER BY 1"}, {}, "q.sql: has ORDER BY"),
    "sql of parts": (CAS, {"sql": "WITH a AS (SELECT 1 AS b) SELECT b AS objID FROM a"}, {},
                     "q.sql: has WITH before its SELECT; put that part in the FROM"),
    "a column that is not there": (CAS, {"sql": "SELECT objID,\n nope FROM PhotoObjAll"}, {},
                                   "q.sql: line 2: CasJobs: Invalid column name 'nope'.; mend"),
    "a place that is a file": (CAS, {"output": "open/out.parquet"}, {}, "choose a place that can"),
    "a stretch of no camera column": (CAS, {"stretch": "94 9 1 2"}, {}, "--stretch 94 9 1 2: "),
    "no skyserver there": (SKY, {"source": "{url}/no"}, {}, "has no SQL search of DR12; check"),
    "no network to skyserver": (SKY, {"source": HERE}, {}, "cannot be reached .* VPN and proxy"),
    "no address of skyserver": (SKY, {"source": "skyserver"}, {}, "is no address; query: source"),
    "pages of skyserver": (SKY, {"source": "{pages}"}, {}, "answered 200 with a web page"),
    "no release": (SKY, {"context": "MyDB"}, {}, "--context MyDB: give a data release, as DR12"),
    "rows of the top": (SKY, {"sql": "SELECT TOP 9 objID FROM Field"}, {}, "q.sql: has TOP; leave"),
    "a column that skyserver lacks": (SKY, {"sql": "SELECT objID,\n nope + 1.5 AS x\nFROM "
                                            "PhotoObjAll"}, {}, "nope|the type of x cannot be"),
}  # fmt: skip


@pytest.fixture(scope="module")
def endings(survey, tmp_path_factory):
    """Exit status and words of every bad input, each in a process of its own."""
    folder, pages = tmp_path_factory.mktemp("bad"), Path.cwd()
    authority, late = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    gone = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    authority.issue_cert("127.0.0.1", not_after=gone).configure_cert(late)
    (folder / "open").write_text("user = a\npassword = b\n")
    (folder / "open").chmod(0o644)
    kinds = {"plain": {}, "pages": {"faults": Faults(1, 0, ("html",))}, "late": {"ssl": late},
             "full": {"faults": Faults(1, 0, ("mydb-full",))}}  # fmt: skip
    running = {
        name: Running(**survey, work=folder / name, job_seconds=0.02, **options)
        for name, options in kinds.items()
    }
    for services in running.values():
        services.start()
    places = {"url": running["plain"].url, "casjobs": running["plain"].casjobs,
              "full": running["full"].casjobs, "full_login": running["full"].login,
              "pages": running["pages"].url, "late": running["late"].url,
              "ca": folder / "ca.pem"}  # fmt: skip
    cases = []
    for number, (engine, flags, environment, _) in enumerate(BAD.values()):
        plain = running["plain"]
        flags = {"engine": engine, "source": getattr(plain, engine), "login": plain.login,
                 "sql": str(pages / "queries/labelled.sql"), "tries": 3,
                 "output": f"out-{number}/out.parquet"} | flags  # fmt: skip
        if " " in (flags["sql"] or "") and "/" not in flags["sql"]:
            (folder / f"{number}-q.sql").write_text(flags["sql"])
            flags["sql"] = f"{number}-q.sql"
        argv = [*FAST]
        for key, value in flags.items():
            if value is not None:
                argv += [f"--{key}", *str(value).format(**places).split(" ")]
        account = {"SCISERVER_USER": "astronomer", "SCISERVER_PASSWORD": "secret",
                   "HOME": str(folder)}  # fmt: skip
        cases.append((argv, account | {k: v.format(**places) for k, v in environment.items()}))
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(cases), cwd=folder, capture_output=True,
        text=True, check=False, env=bare() | {"PYTHONPATH": str(pages)},
    )  # fmt: skip
    for services in running.values():
        services.stop()
    statuses = list(map(int, done.stdout.split()))
    assert len(statuses) == len(BAD), done.stderr
    return {
        name: (statuses[number], (folder / f"{number}.said").read_text(), folder / f"out-{number}")
        for number, name in enumerate(BAD)
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_that_says_what_to_do(endings, name):
    status, said, output = endings[name]
    last = said.splitlines()[-1]
    assert status == 1 and "Traceback" not in said, said
    assert last.startswith("error: ") and re.search(BAD[name][3], last), said
    assert said.count("error: ") == 1
    assert "guess" not in said and "secret" not in said
    assert not (output / "out.parquet").exists()
