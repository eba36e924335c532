//! The elements: symbols and standard atomic masses.

/// Largest atomic number known here.
pub const MAX_ATOMIC_NUMBER: u8 = 118;

/// Symbols by atomic number; number 0 is the ghost atom "X", as in ASE.
const SYMBOLS: [&str; 119] = [
    "X", "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S",
    "Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge",
    "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd",
    "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd",
    "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg",
    "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm",
    "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn",
    "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
];

/// Standard atomic masses by atomic number, dalton: the IUPAC 2016 table as ASE rounds it
/// (`ase.data.atomic_masses`), so that velocities and energies agree with ASE's scripts.
const MASSES_DALTON: [f64; 119] = [
    1.0,
    1.008,
    4.002602,
    6.94,
    9.0121831,
    10.81,
    12.011,
    14.007,
    15.999,
    18.998403163,
    20.1797,
    22.98976928,
    24.305,
    26.9815385,
    28.085,
    30.973761998,
    32.06,
    35.45,
    39.948,
    39.0983,
    40.078,
    44.955908,
    47.867,
    50.9415,
    51.9961,
    54.938044,
    55.845,
    58.933194,
    58.6934,
    63.546,
    65.38,
    69.723,
    72.63,
    74.921595,
    78.971,
    79.904,
    83.798,
    85.4678,
    87.62,
    88.90584,
    91.224,
    92.90637,
    95.95,
    97.90721,
    101.07,
    102.9055,
    106.42,
    107.8682,
    112.414,
    114.818,
    118.71,
    121.76,
    127.6,
    126.90447,
    131.293,
    132.90545196,
    137.327,
    138.90547,
    140.116,
    140.90766,
    144.242,
    144.91276,
    150.36,
    151.964,
    157.25,
    158.92535,
    162.5,
    164.93033,
    167.259,
    168.93422,
    173.054,
    174.9668,
    178.49,
    180.94788,
    183.84,
    186.207,
    190.23,
    192.217,
    195.084,
    196.966569,
    200.592,
    204.38,
    207.2,
    208.9804,
    208.98243,
    209.98715,
    222.01758,
    223.01974,
    226.02541,
    227.02775,
    232.0377,
    231.03588,
    238.02891,
    237.04817,
    244.06421,
    243.06138,
    247.07035,
    247.07031,
    251.07959,
    252.083,
    257.09511,
    258.09843,
    259.101,
    262.11,
    267.122,
    268.126,
    271.134,
    270.133,
    269.1338,
    278.156,
    281.165,
    281.166,
    285.177,
    286.182,
    289.19,
    289.194,
    293.204,
    293.208,
    294.214,
];

/// Chemical symbol of an atomic number from 0 ("X") to 118; `None` beyond.
pub fn symbol(number: u8) -> Option<&'static str> {
    SYMBOLS.get(usize::from(number)).copied()
}

/// Atomic number of a chemical symbol with its usual capitals ("Fe"); `None` if unknown.
pub fn number(symbol: &str) -> Option<u8> {
    let index = SYMBOLS[1..].iter().position(|&s| s == symbol)?;
    u8::try_from(index + 1).ok()
}

/// Standard atomic mass, dalton, of an atomic number from 1 to 118; `None` otherwise.
pub fn mass_dalton(number: u8) -> Option<f64> {
    match number {
        0 => None,
        n => MASSES_DALTON.get(usize::from(n)).copied(),
    }
}

/// Standard atomic mass, dalton; NaN for numbers that are no element, so that nothing can be
/// integrated with a made-up mass.
pub fn atomic_mass(number: u8) -> f64 {
    mass_dalton(number).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_leads_back_to_its_number() {
        for z in 1..=MAX_ATOMIC_NUMBER {
            assert_eq!(number(symbol(z).unwrap()), Some(z));
        }
        assert_eq!(number("X"), None);
        assert_eq!(number("fe"), None);
        assert_eq!(symbol(119), None);
    }

    #[test]
    fn masses_are_those_of_ase() {
        assert_eq!(mass_dalton(1), Some(1.008));
        assert_eq!(mass_dalton(26), Some(55.845));
        assert_eq!(mass_dalton(118), Some(294.214));
        assert_eq!(mass_dalton(0), None);
        assert_eq!(mass_dalton(119), None);
        // The sum over the table guards against a shifted or mistyped entry.
        let sum: f64 = (1..=118).filter_map(mass_dalton).sum();
        assert!((sum - SUM).abs() < 1e-9, "{sum}");
    }

    /// `ase.data.atomic_masses[1:].sum()` of ASE 3.29.
    const SUM: f64 = 17284.869180001002;
}
