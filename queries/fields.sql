-- The fields of the imaging survey: where each one lies and how good it is. Context DR12.
-- One row a field: 938,046 of rerun 301. Hayat et al. 2020 had no such query.
--
-- muStart..nuEnd [deg]: the field, 64 pixels clipped at each side, in great-circle coordinates.
-- a..f: row, column of a band -> great-circle coordinates (mu = a + b row + c col, nu = d + e row +
-- f col). Node and inclination of a run's great circle, which turn mu, nu into ra, dec, are not
-- asked for: they follow from a..f and from ra, dec [deg], the place of the field's centre in r.
-- primaryArea [deg^2] is above 0 where the field is the survey's best view of some sky.
-- psfWidth [arcsec], sky [nanomaggy/arcsec^2], gain [e-/DN] and darkVariance [DN^2] go by band.

SELECT
  f.fieldID, f.run, f.rerun, f.camcol, f.field,
  f.ra, f.dec, f.raMin, f.raMax, f.decMin, f.decMax,
  f.muStart, f.muEnd, f.nuStart, f.nuEnd,
  f.score, f.quality, f.primaryArea,
  f.psfWidth_u, f.psfWidth_g, f.psfWidth_r, f.psfWidth_i, f.psfWidth_z,
  f.sky_u, f.sky_g, f.sky_r, f.sky_i, f.sky_z,
  f.gain_u, f.gain_g, f.gain_r, f.gain_i, f.gain_z,
  f.darkVariance_u, f.darkVariance_g, f.darkVariance_r, f.darkVariance_i, f.darkVariance_z,
  f.a_u, f.a_g, f.a_r, f.a_i, f.a_z,
  f.b_u, f.b_g, f.b_r, f.b_i, f.b_z,
  f.c_u, f.c_g, f.c_r, f.c_i, f.c_z,
  f.d_u, f.d_g, f.d_r, f.d_i, f.d_z,
  f.e_u, f.e_g, f.e_r, f.e_i, f.e_z,
  f.f_u, f.f_g, f.f_r, f.f_i, f.f_z
FROM Field f
