//! Random numbers that are a function of (seed, step, atom, component) and of nothing else.
//!
//! ChaCha8 is used as a counter-based generator: the key holds the seed and the purpose of the
//! numbers, the stream is the step, and every atom owns one block of 64 bytes. Whoever computes
//! an atom, in whatever order, on whatever rank or thread, before or after a restart, reads the
//! same words.
//!
//! Normal deviates come from the Box-Muller transform rather than from a ziggurat. A ziggurat
//! takes a varying number of words and its rare branches call the platform's `exp` and `ln`;
//! Box-Muller takes two words for two deviates, always, so that an atom's six deviates fit its
//! block, and with the logarithm, sine and cosine of `libm` (software, the same on every
//! platform) no bit depends on the machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::PARALLEL_ATOMS;

/// What the numbers are for. Different purposes never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Random kicks of a thermostat.
    Thermostat,
    /// Drawing of velocities.
    Velocities,
}

/// 32-bit words of one ChaCha block, which is what one atom owns.
const WORDS_PER_ATOM: u128 = 16;
/// 64-bit words of one ChaCha block.
const DRAWS_PER_ATOM: usize = 8;
/// Atoms that one thread does in one go: few enough to share the work, enough to pay for the seek.
const ATOMS_PER_TASK: usize = 256;

/// Six standard normal deviates per atom: `[N][6]`.
///
/// `step` must be the number of the step for [`Purpose::Thermostat`].
pub fn normal_deviates(purpose: Purpose, seed: u64, step: u64, atoms: usize) -> Vec<[f64; 6]> {
    let generator = generator(purpose, seed, step);
    let mut deviates = vec![[0.0; 6]; atoms];
    let fill = |first_atom: usize, chunk: &mut [[f64; 6]]| {
        let mut generator = generator.clone();
        generator.set_word_pos(first_atom as u128 * WORDS_PER_ATOM);
        for deviate in chunk {
            let words: [u64; DRAWS_PER_ATOM] = std::array::from_fn(|_| generator.next_u64());
            for pair in 0..3 {
                let (a, b) = box_muller(words[2 * pair], words[2 * pair + 1]);
                deviate[2 * pair] = a;
                deviate[2 * pair + 1] = b;
            }
        }
    };
    if atoms < PARALLEL_ATOMS {
        fill(0, &mut deviates);
    } else {
        deviates
            .par_chunks_mut(ATOMS_PER_TASK)
            .enumerate()
            .for_each(|(task, chunk)| fill(task * ATOMS_PER_TASK, chunk));
    }
    deviates
}

/// The generator of one purpose, seed and step, at the block of atom 0.
fn generator(purpose: Purpose, seed: u64, step: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(match purpose {
        Purpose::Thermostat => b"thermost",
        Purpose::Velocities => b"velociti",
    });
    key[16..].copy_from_slice(b"umaserve normal1");
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(step);
    generator
}

/// Two independent standard normal deviates from two random words.
fn box_muller(a: u64, b: u64) -> (f64, f64) {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    // In (0, 1]: the logarithm is finite, and the deviates are bounded by 8.6.
    let u = ((a >> 11) + 1) as f64 * UNIT;
    let angle = std::f64::consts::TAU * ((b >> 11) as f64 * UNIT);
    // The square root is correctly rounded everywhere, so it needs no software version.
    let radius = (-2.0 * libm::log(u)).sqrt();
    let (sine, cosine) = libm::sincos(angle);
    (radius * cosine, radius * sine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_fixed_for_good() {
        // Recorded once. A change here changes every recorded trajectory.
        let d = normal_deviates(Purpose::Thermostat, 7, 11, 2);
        let bits: Vec<u64> = d[1].iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, RECORDED, "{bits:#x?}");
    }

    const RECORDED: [u64; 6] = [
        0x3fdf_f8f4_65d5_d687,
        0x3fe8_117b_7c65_e231,
        0x3ffb_d79f_2d8f_242d,
        0x3fcc_ae4d_34ef_acda,
        0x3fdb_3292_b762_29e5,
        0x3fc0_b5a1_6472_525a,
    ];

    #[test]
    fn an_atom_does_not_depend_on_how_many_there_are() {
        let few = normal_deviates(Purpose::Thermostat, 1, 2, 10);
        let many = normal_deviates(Purpose::Thermostat, 1, 2, 3000);
        assert_eq!(few[..], many[..10]);
        assert_eq!(
            normal_deviates(Purpose::Thermostat, 1, 2, 2999),
            many[..2999]
        );
    }

    #[test]
    fn purposes_seeds_and_steps_share_nothing() {
        let all: Vec<_> = [
            normal_deviates(Purpose::Thermostat, 1, 2, 50),
            normal_deviates(Purpose::Velocities, 1, 2, 50),
            normal_deviates(Purpose::Thermostat, 2, 1, 50),
            normal_deviates(Purpose::Thermostat, 1, 3, 50),
        ]
        .concat()
        .iter()
        .flatten()
        .map(|x| x.to_bits())
        .collect();
        let mut unique = all.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn deviates_are_normal_and_uncorrelated() {
        let atoms = 200_000;
        let d = normal_deviates(Purpose::Thermostat, 3, 0, atoms);
        // Standard errors of the moments of n normal deviates: sqrt(1/n), sqrt(2/n), sqrt(15/n),
        // sqrt(96/n); five of them each.
        let n = atoms as f64;
        for c in 0..6 {
            let moment = |k: i32| d.iter().map(|a| a[c].powi(k)).sum::<f64>() / n;
            assert!(moment(1).abs() < 5.0 * (1.0 / n).sqrt());
            assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
            assert!(moment(3).abs() < 5.0 * (15.0 / n).sqrt());
            assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
            for other in 0..c {
                let covariance = d.iter().map(|a| a[c] * a[other]).sum::<f64>() / n;
                assert!(covariance.abs() < 5.0 * (1.0 / n).sqrt(), "{c} {other}");
            }
        }
    }

    #[test]
    fn extreme_words_give_finite_deviates() {
        for a in [0, u64::MAX] {
            for b in [0, u64::MAX] {
                let (x, y) = box_muller(a, b);
                assert!(x.is_finite() && y.is_finite() && x.abs() < 8.7 && y.abs() < 8.7);
            }
        }
    }
}
