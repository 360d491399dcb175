-- The labelled sample: galaxies of the SDSS Main Galaxy Sample with a good spectroscopic redshift.
-- Context DR12. One row a spectrum: the query has no sciencePrimary cut, so an object that was
-- observed more than once comes more than once; the catalogue step keeps one row of each.
--
-- Hayat et al. 2020 had 547,224 rows from it, and 502,977 objects after removing duplicates.
--
-- It is the query of the paper's predecessor (Pasquet et al. 2019). Added here: what is needed to
-- find an object's frames (run, rerun, camcol, field, rowc, colc), to deredden it (extinction in
-- all five bands), to choose among repeat spectra (sciencePrimary) and to check against (Photoz).
-- galSpecInfo.subclass would be a second column of the name subClass, which SELECT INTO refuses
-- (names are case-insensitive): it is galSpecSubClass here.
-- primtarget >= 64 is the predecessor's test and kept as it was: it is not a test of bit 64.

SELECT
  za.specObjID, za.bestObjID, za.sciencePrimary, za.class, za.subClass, za.z, za.zErr,
  po.objID, po.mode, po.type, po.flags, po.run, po.rerun, po.camcol, po.field,
  po.ra, po.dec, po.b,
  po.rowc_u, po.rowc_g, po.rowc_r, po.rowc_i, po.rowc_z,
  po.colc_u, po.colc_g, po.colc_r, po.colc_i, po.colc_z,
  po.petroMag_u, po.petroMag_g, po.petroMag_r, po.petroMag_i, po.petroMag_z,
  po.modelMag_u, po.modelMag_g, po.modelMag_r, po.modelMag_i, po.modelMag_z,
  po.extinction_u, po.extinction_g, po.extinction_r, po.extinction_i, po.extinction_z,
  (po.petroMag_r - po.extinction_r) AS dered_petro_r,
  zp.z AS photoz, zp.zErr AS photozErr,
  zi.e_bv_sfd, zi.primtarget, zi.sectarget, zi.targettype, zi.spectrotype,
  zi.subclass AS galSpecSubClass
FROM SpecObjAll za
  JOIN PhotoObjAll po ON po.objID = za.bestObjID
  JOIN Photoz zp ON zp.objID = za.bestObjID
  JOIN galSpecInfo zi ON zi.specObjID = za.specObjID
WHERE za.z > 0 AND za.z <= 0.4 AND za.zWarning = 0
  AND za.targetType = 'SCIENCE' AND za.survey = 'sdss'
  AND za.class = 'GALAXY' AND zi.primtarget >= 64
  AND po.clean = 1 AND po.insideMask = 0
  AND (po.petroMag_r - po.extinction_r) <= 17.8
