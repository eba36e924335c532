//! Units and constants of the whole program: eV, Angstrom, fs, dalton, kelvin.
//!
//! Velocities are kept in Angstrom per *ASE time unit* (Angstrom * sqrt(dalton / eV), about
//! 10.18 fs), so that `acceleration = force / mass` holds without a factor. The constants are
//! those of ASE (CODATA 2014), because viewers and scripts compare with it.

/// Boltzmann's constant, eV/K.
pub const BOLTZMANN_EV_PER_KELVIN: f64 = 8.617330337217213e-5;
/// One femtosecond in ASE time units.
pub const FEMTOSECOND: f64 = 0.09822694788464063;
/// One eV/Angstrom in kJ/mol/Angstrom (H5MD readers expect forces in it).
pub const EV_IN_KJ_PER_MOL: f64 = 96.48533288249877;
