-- The unlabelled sample: every galaxy of the imaging survey that passes the photometric selection
-- of labelled.sql (clean, outside masks, dereddened Petrosian r <= 17.8). No spectrum is needed.
-- Context DR12.
--
-- Hayat et al. 2020 had 1,194,779 galaxies from it after all cuts: the catalogue step removes those
-- that are also labelled, those at |b| < 15 deg and those of photo-z > 0.8.
--
-- mode = 1 keeps the primary detection of an object. PhotoObjAll holds every detection, and without
-- this cut a galaxy in the overlap of two runs would be here two or more times. (labelled.sql needs
-- no such cut: a spectrum has one bestObjID.)
-- Photoz is joined from the left, so that a galaxy without photo-z is seen and counted.

SELECT
  po.objID, po.mode, po.type, po.flags, po.run, po.rerun, po.camcol, po.field,
  po.ra, po.dec, po.b,
  po.rowc_u, po.rowc_g, po.rowc_r, po.rowc_i, po.rowc_z,
  po.colc_u, po.colc_g, po.colc_r, po.colc_i, po.colc_z,
  po.petroMag_u, po.petroMag_g, po.petroMag_r, po.petroMag_i, po.petroMag_z,
  po.modelMag_u, po.modelMag_g, po.modelMag_r, po.modelMag_i, po.modelMag_z,
  po.extinction_u, po.extinction_g, po.extinction_r, po.extinction_i, po.extinction_z,
  (po.petroMag_r - po.extinction_r) AS dered_petro_r,
  zp.z AS photoz, zp.zErr AS photozErr
FROM PhotoObjAll po
  LEFT JOIN Photoz zp ON zp.objID = po.objID
WHERE po.type = 3 AND po.mode = 1
  AND po.clean = 1 AND po.insideMask = 0
  AND (po.petroMag_r - po.extinction_r) <= 17.8
