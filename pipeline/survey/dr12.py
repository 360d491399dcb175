"""The tables of DR12 that ugriz knows: their columns and SQL Server types."""

from __future__ import annotations

from pipeline.survey.names import BANDS

SCHEMAS = {
    "PhotoObjAll": """
        objID:bigint skyVersion:tinyint run:smallint rerun:smallint camcol:tinyint field:smallint
        obj:smallint mode:tinyint nChild:smallint type:smallint clean:int probPSF:real
        insideMask:tinyint flags:bigint rowc:real colc:real rowc_*:real colc_*:real
        petroRad_r:real petroR50_r:real petroR90_r:real petroMag_*:real petroMagErr_*:real
        petroFlux_*:real psfMag_*:real psfMagErr_*:real modelMag_*:real modelMagErr_*:real
        modelFlux_*:real u:real g:real r:real i:real z:real err_*:real dered_*:real
        extinction_*:real psffwhm_*:real ra:float dec:float raErr:float decErr:float cx:float
        cy:float cz:float b:float l:float mjd:int fieldID:bigint parentID:bigint specObjID:bigint
        resolveStatus:int thingId:int nObserve:int nDetect:int score:real nMgyPerCount_*:real
        calibStatus_*:int""",
    "SpecObjAll": """
        specObjID:bigint bestObjID:bigint fluxObjID:bigint targetObjID:bigint
        sciencePrimary:smallint sdssPrimary:smallint legacyPrimary:smallint bossPrimary:smallint
        survey:varchar instrument:varchar programname:varchar mjd:int plate:smallint
        fiberID:smallint run2d:varchar legacy_target1:bigint primTarget:bigint secTarget:bigint
        sourceType:varchar targetType:varchar ra:float dec:float z:real zErr:real zWarning:int
        class:varchar subClass:varchar""",
    "Photoz": """
        objID:bigint z:real zErr:real nnCount:smallint nnVol:real photoErrorClass:smallint
        nnAvgZ:real""",
    "galSpecInfo": """
        specObjID:bigint plateid:smallint mjd:int fiberid:smallint ra:real dec:real
        primtarget:smallint sectarget:smallint targettype:varchar spectrotype:varchar
        subclass:varchar z:real z_err:real z_warning:smallint v_disp:real v_disp_err:real
        sn_median:real e_bv_sfd:real release:varchar reliable:smallint""",
    "zooSpec": """
        specobjid:bigint objid:bigint dr7objid:bigint ra:real dec:real rastring:varchar
        decstring:varchar nvote:int p_el:float p_cw:float p_acw:float p_edge:float p_dk:float
        p_mg:float p_cs:float p_el_debiased:float p_cs_debiased:float spiral:int elliptical:int
        uncertain:int""",
    "Field": """
        fieldID:bigint skyVersion:tinyint run:smallint rerun:smallint camcol:tinyint field:smallint
        nTotal:smallint nObjects:smallint nChild:smallint nGalaxy:smallint nStars:smallint
        quality:int mjd_*:float a_*:real b_*:real c_*:real d_*:real e_*:real f_*:real ra:float
        dec:float raMin:float raMax:float decMin:float decMax:float pixScale:float
        primaryArea:float photoStatus:int rowOffset_*:real colOffset_*:real saturationLevel_*:int
        sky_*:real skyFrames_*:real sigPix_*:real psfWidth_*:real gain_*:real darkVariance_*:real
        score:real pspStatus:smallint calibStatus_*:int imageStatus_*:int nMgyPerCount_*:real
        muStart:float muEnd:float nuStart:float nuEnd:float loadVersion:int""",
}
"""`name:type` of each column, with SQL Server's types; `*` stands for u, g, r, i, z."""
VIEWS = {
    "PhotoObj": "PhotoObjAll", "PhotoPrimary": "PhotoObjAll", "Galaxy": "PhotoObjAll",
    "Star": "PhotoObjAll", "SpecObj": "SpecObjAll",
}  # fmt: skip
"""View -> the table whose columns it has."""
DUCKDB_TYPES = {
    "bigint": "BIGINT", "int": "INTEGER", "smallint": "SMALLINT", "tinyint": "UTINYINT",
    "real": "FLOAT", "float": "DOUBLE", "varchar": "VARCHAR",
}  # fmt: skip


def columns(table: str) -> dict[str, str]:
    """Columns of a DR12 table and their SQL Server types, in order."""
    found = {}
    for entry in SCHEMAS[table].split():
        name, kind = entry.split(":")
        for band in BANDS if "*" in name else " ":
            found[name.replace("*", band)] = kind
    return found


def tables() -> dict[str, dict[str, str]]:
    """Table or view -> column -> SQL Server type."""
    names = {table: table for table in SCHEMAS} | VIEWS
    return {name: columns(table) for name, table in names.items()}
