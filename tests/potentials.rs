//! The properties of every potential, and the sums over edges that forces and stress are.

mod common;

use common::LennardJones;
use common::conformance::{Tolerance, check_all, evaluate_one};
use umaserve::neighbors::{NeighborError, NeighborList};
use umaserve::potential::{EdgeGradients, EvaluationError, Potential, evaluate};
use umaserve::system::{Cell, System};

fn system(
    numbers: &[u8],
    positions: &[[f64; 3]],
    vectors: [[f64; 3]; 3],
    pbc: [bool; 3],
) -> System {
    System {
        numbers: numbers.to_vec(),
        positions: positions.to_vec(),
        cell: Cell {
            vectors,
            periodic: pbc,
        },
        task: "omol".to_owned(),
        ..System::default()
    }
}

const NO_CELL: [[f64; 3]; 3] = [[0.0; 3]; 3];
const SKEW: [[f64; 3]; 3] = [[4.0, 0.1, 0.2], [1.5, 3.5, -0.3], [-0.7, 0.4, 5.0]];

/// Molecules, a lone atom, crystals in one, two and three directions, with and without the vectors
/// that are not needed.
fn systems() -> Vec<System> {
    let water =
        [[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]].map(|p| p.map(|x| 2.0 * x));
    let three = [[0.1, 0.2, 0.3], [2.0, 1.5, 2.4], [-19.0, 8.0, 3.1]];
    let mut cluster = Vec::new();
    for i in 0..90 {
        let (a, b, c) = (i % 5, i / 5 % 5, i / 25);
        let wobble = 0.1 * f64::from(i).sin();
        cluster.push([
            2.1 * f64::from(a) + wobble,
            2.2 * f64::from(b) - wobble,
            2.0 * f64::from(c),
        ]);
    }
    let elements: Vec<u8> = (0..90).map(|i| [6, 8, 1][i % 3]).collect();
    vec![
        system(&[8, 1, 1], &water, NO_CELL, [false; 3]),
        system(&[26], &[[5.0, 6.0, 7.0]], NO_CELL, [false; 3]),
        system(&[6, 8, 14], &three, SKEW, [true; 3]),
        system(&[6, 8, 14], &three, SKEW, [true, false, true]),
        system(
            &[6, 8, 14],
            &three,
            [SKEW[0], SKEW[1], [0.0; 3]],
            [true, true, false],
        ),
        system(
            &[6, 8, 14],
            &three,
            [[0.0; 3], [0.0; 3], SKEW[2]],
            [false, false, true],
        ),
        system(
            &[13],
            &[[0.0; 3]],
            [[0.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 0.0]],
            [true; 3],
        ),
        system(&elements, &cluster, NO_CELL, [false; 3]),
        system(
            &elements,
            &cluster,
            [[10.5, 0.0, 0.0], [1.0, 11.0, 0.0], [0.0, 0.5, 8.5]],
            [true; 3],
        ),
    ]
}

#[test]
fn lennard_jones_is_a_potential() {
    check_all(&LennardJones::default(), &systems(), Tolerance::F64);
}

#[test]
fn the_sums_over_edges_agree_with_a_pair_done_by_hand() {
    let potential = LennardJones::default();
    let d = 2.3;
    let pair = system(
        &[6, 6],
        &[[1.0, 1.0, 1.0], [1.0, 1.0 + d, 1.0]],
        NO_CELL,
        [false; 3],
    );
    let at = evaluate_one(&potential, &pair);
    // 4 eps ((s/d)^12 - (s/d)^6) (1 - (d/rc)^2)^3 with eps = 0.05, s = 1.5, rc = 6.
    let s6 = (1.5f64 / d).powi(6);
    let t = 1.0 - (d / 6.0f64).powi(2);
    let energy = 0.2 * (s6 * s6 - s6) * t.powi(3);
    assert!((at.energy - energy).abs() < 1e-15);
    let slope = 0.2 * (-12.0 * s6 * s6 + 6.0 * s6) / d * t.powi(3)
        + 0.2 * (s6 * s6 - s6) * 3.0 * t.powi(2) * (-2.0 * d / 36.0);
    // The first atom is pulled to +y when the energy rises with the distance.
    assert!((at.forces[0][1] - slope).abs() < 1e-14);
    assert!((at.forces[1][1] + slope).abs() < 1e-14);
    assert_eq!(at.stress, None);

    // The same pair as a chain along y in a large box: stress_yy = d E' / V.
    let boxed = system(
        &pair.numbers,
        &pair.positions,
        [[20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 20.0]],
        [true; 3],
    );
    let stress = evaluate_one(&potential, &boxed).stress.unwrap();
    assert!((stress[1][1] - d * slope / 8000.0).abs() < 1e-18);
    assert!(stress[0][0].abs() < 1e-18 && stress[0][1].abs() < 1e-18);
}

#[test]
fn capped_neighbors_still_give_forces_that_cancel() {
    let potential = LennardJones {
        max_neighbors: 9,
        ..LennardJones::default()
    };
    let cluster = systems().pop().unwrap();
    let list = umaserve::neighbors::neighbor_list(&cluster, 6.0, 9, 1_000_000).unwrap();
    assert!(list.truncated && list.reverse.contains(&u32::MAX));
    let at = evaluate_one(&potential, &cluster);
    // Straight from the definition.
    let gradients = potential
        .edge_gradients(&[(&cluster, &list)])
        .remove(0)
        .unwrap();
    let mut forces = vec![[0.0; 3]; cluster.len()];
    for target in 0..cluster.len() {
        for edge in list.edges_of(target) {
            let source = list.source[edge] as usize;
            for (k, g) in gradients.gradient[edge].iter().enumerate() {
                forces[source][k] -= g;
                forces[target][k] += g;
            }
        }
    }
    for (a, b) in at.forces.iter().flatten().zip(forces.iter().flatten()) {
        assert!((a - b).abs() < 1e-12);
    }
}

#[test]
fn errors_name_the_system_they_belong_to() {
    let potential = LennardJones::default();
    let good = systems().remove(0);
    let mut heavy = good.clone();
    heavy.numbers[0] = 92;
    let mut nan = good.clone();
    nan.positions[2][0] = f64::NAN;
    // (1.5 / 1e-40)^12 is infinite.
    let close = system(&[6, 6], &[[0.0; 3], [1e-40, 0.0, 0.0]], NO_CELL, [false; 3]);
    let crowded = systems().remove(6);
    let batch = [&heavy, &good, &nan, &close, &crowded, &good];
    let answers = evaluate(&potential, &batch, 40);
    assert!(matches!(&answers[0], Err(EvaluationError::Unsupported(why)) if why.contains("92")));
    assert!(answers[1].is_ok());
    assert!(matches!(answers[2], Err(EvaluationError::System(_))));
    assert_eq!(
        answers[3],
        Err(EvaluationError::NotFinite { what: "energy" })
    );
    assert!(matches!(
        answers[4],
        Err(EvaluationError::Neighbors(NeighborError::TooManyEdges {
            limit: 40,
            ..
        }))
    ));
    assert_eq!(answers[1], answers[5]);
    assert!(evaluate(&potential, &[], 40).is_empty());
}

/// Answers with given numbers, finite or not.
struct Fixed {
    energy: f64,
    gradient: f64,
}

impl Potential for Fixed {
    fn cutoff_angstrom(&self) -> f64 {
        6.0
    }
    fn max_neighbors(&self) -> usize {
        300
    }
    fn check(&self, _: &System) -> Result<(), EvaluationError> {
        Ok(())
    }
    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        batch
            .iter()
            .map(|(_, list)| {
                Ok(EdgeGradients {
                    energy: self.energy,
                    gradient: vec![[self.gradient, 0.0, 0.0]; list.len()],
                })
            })
            .collect()
    }
}

#[test]
fn results_that_are_not_finite_are_errors() {
    let [water, crystal] = [systems().remove(0), systems().remove(6)];
    let error = |energy, gradient, system: &System| {
        let potential = Fixed { energy, gradient };
        evaluate(&potential, &[system], 1000).remove(0).err()
    };
    let what = |what| Some(EvaluationError::NotFinite { what });
    assert_eq!(error(1.0, 1.0, &water), None);
    assert_eq!(error(f64::NAN, 1.0, &water), what("energy"));
    assert_eq!(error(1.0, f64::INFINITY, &water), what("forces"));
    // Finite forces, but g times the edge vector leaves the range.
    assert_eq!(error(1.0, f64::MAX / 20.0, &crystal), what("stress"));
}
