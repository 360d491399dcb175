-- Morphologies: the votes of Galaxy Zoo 1 (Lintott et al. 2011, table 2) for galaxies with spectra.
-- Context DR12. One row a galaxy; p_* are fractions of nvote votes: elliptical, clockwise,
-- anticlockwise and edge-on spiral, don't know, merger, combined spiral (cs = cw + acw + edge);
-- spiral, elliptical and uncertain are flags (1 where the debiased fraction is above 0.8).
-- dr7objid and the DR7 position are left out: objid is the object's id in DR8 and later.
--
-- Hayat et al. 2020 used no morphologies and give no count of rows.

SELECT
  zs.objid AS objID, zs.specobjid AS specObjID, zs.nvote,
  zs.p_el, zs.p_cw, zs.p_acw, zs.p_edge, zs.p_dk, zs.p_mg, zs.p_cs,
  zs.p_el_debiased, zs.p_cs_debiased, zs.spiral, zs.elliptical, zs.uncertain
FROM zooSpec zs
