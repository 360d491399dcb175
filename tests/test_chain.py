"""One galaxy through every stage, from SQL to the release files."""

import h5py
import numpy as np
import pandas as pd
import small_sky
import small_survey

from pipeline import catalog, cutouts, dataset, export, frames, query
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field


def test_an_object_id_is_the_same_from_sql_to_the_release_files(tmp_path):
    """1237653651835781245 is none of the numbers that a float64 holds."""
    results = tmp_path / "results"
    database = small_survey.make(
        tmp_path / "survey.duckdb",
        spectra=[{}],
        photo=[{}],
        photoz=[{"objID": small_survey.KNOWN, "z": 0.1, "zErr": 0.01}],
    )
    field, image = Field(1904, 3, 163), np.zeros(FRAME_SHAPE, dtype=np.float32)
    image[645:845, 925:1125] = 1
    for band in BANDS:
        wcs = small_sky.make_wcs(150.0, 2.0, angle=30)
        small_sky.write_frame(tmp_path / "dr9", field, band, image, wcs)

    for name in ("labelled", "unlabelled"):
        output = str(results / f"{name}.parquet")
        source = ["--engine", "duckdb", "--source", str(database)]
        query.main([*source, "--sql", f"queries/{name}.sql", "--output", output])
    tables = [f"--{name}={results / name}.parquet" for name in ("labelled", "unlabelled")]
    made = {"--output": results / "catalog.parquet", "--funnel": results / "catalog.json"}
    catalog.main([*tables, *(f"{flag}={path}" for flag, path in made.items())])
    shard = ["--galaxies", str(results / "catalog.parquet"), "--shard", "0"]
    brought = ["--root", str(tmp_path / "dr9"), "--output", str(results / "frames")]
    frames.main(["fetch", *shard, *brought])
    stamps = str(results / "cutouts" / "0000.h5")
    cutouts.main([*shard, "--archive", str(results / "frames"), "--output", stamps])
    record = str(results / "dataset.json")
    dataset.main(["--shards", stamps, "--catalog", shard[1], "--output", record])
    export.main(["--dataset", record, "--output", str(results / "export")])

    for name in ("labelled", "unlabelled", "catalog"):
        ids = pd.read_parquet(results / f"{name}.parquet", columns=["objID"]).objID
        assert str(ids.dtype) == "int64" and ids.tolist() == [small_survey.KNOWN]
    found = []
    for path in (results / "cutouts" / "0000.h5", *(results / "export").glob("*.h5")):
        with h5py.File(path) as file:
            assert file["ObjID"].dtype == np.int64
            found += file["ObjID"][:].tolist()
            np.testing.assert_allclose(file["images"][:], 1.0, rtol=1e-3)
    assert found == [small_survey.KNOWN] * 2
