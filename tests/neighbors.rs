//! Neighbour lists against a brute-force search over images and against ASE.

use proptest::prelude::*;
use umaserve::neighbors::{NeighborError, NeighborList, neighbor_list};
use umaserve::system::{Cell, System};

fn system(positions: Vec<[f64; 3]>, vectors: [[f64; 3]; 3], periodic: [bool; 3]) -> System {
    System {
        numbers: vec![6; positions.len()],
        positions,
        cell: Cell { vectors, periodic },
        ..System::default()
    }
}

fn list(system: &System, cutoff: f64) -> NeighborList {
    neighbor_list(system, cutoff, usize::MAX, 10_000_000).unwrap()
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

fn norm(v: [f64; 3]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Every pair and every image whose planes are within the cutoff, no search structure at all.
fn brute_force(system: &System, cutoff: f64) -> NeighborList {
    let cell = &system.cell;
    let rows = cell.completed();
    let mut result = NeighborList {
        target_start: vec![0],
        ..NeighborList::default()
    };
    for &target in &system.positions {
        for (s, &source) in system.positions.iter().enumerate() {
            let (f, g) = (cell.fractional(source), cell.fractional(target));
            let images: [std::ops::RangeInclusive<i64>; 3] = std::array::from_fn(|k| {
                if !cell.periodic[k] {
                    return 0..=0;
                }
                let normal = cross(rows[(k + 1) % 3], rows[(k + 2) % 3]);
                let reach = cutoff * norm(normal) / cell.volume();
                let offset = f[k] - g[k];
                (-reach - offset).floor() as i64 - 1..=(reach - offset).ceil() as i64 + 1
            });
            for a in images[0].clone() {
                for b in images[1].clone() {
                    for c in images[2].clone() {
                        let n = [a as f64, b as f64, c as f64];
                        let v: [f64; 3] = std::array::from_fn(|k| {
                            let shift = n[0] * cell.vectors[0][k]
                                + n[1] * cell.vectors[1][k]
                                + n[2] * cell.vectors[2][k];
                            (source[k] - target[k]) + shift
                        });
                        let d2 = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
                        if d2 > 0.0 && d2 <= cutoff * cutoff {
                            result.source.push(s as u32);
                            result.vector.push(v);
                        }
                    }
                }
            }
        }
        result.target_start.push(result.source.len() as u32);
    }
    result
}

fn target_of(list: &NeighborList) -> Vec<u32> {
    (0..list.target_start.len() - 1)
        .flat_map(|t| list.edges_of(t).map(move |_| t as u32))
        .collect()
}

/// The list is the brute-force one, edge by edge and bit by bit, and its reverse edges are right.
fn check(system: &System, cutoff: f64) -> NeighborList {
    let found = list(system, cutoff);
    let expected = brute_force(system, cutoff);
    assert_eq!(found.target_start, expected.target_start, "{system:?}");
    assert_eq!(found.source, expected.source);
    assert_eq!(found.vector, expected.vector);
    assert!(!found.truncated);
    let target = target_of(&found);
    assert_eq!(found.reverse.len(), found.len());
    for edge in 0..found.len() {
        let reverse = found.reverse[edge] as usize;
        assert_eq!(found.reverse[reverse] as usize, edge);
        assert_ne!(reverse, edge);
        assert_eq!(found.source[reverse], target[edge]);
        assert_eq!(target[reverse], found.source[edge]);
        for k in 0..3 {
            // Equal and opposite; 0 == -0.
            assert_eq!(found.vector[reverse][k], -found.vector[edge][k]);
        }
    }
    found
}

/// Positions around the origin, some of them far outside of any cell.
fn positions(atoms: usize, seed: u64, spread: f64) -> Vec<[f64; 3]> {
    // A linear congruential generator is random enough for coordinates.
    let mut state = seed
        .wrapping_mul(2862933555777941757)
        .wrapping_add(3037000493);
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..atoms)
        .map(|_| std::array::from_fn(|_| spread * next()))
        .collect()
}

const TRICLINIC: [[f64; 3]; 3] = [[4.0, 0.1, 0.2], [1.5, 3.0, -0.3], [-0.7, 0.4, 5.0]];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn agrees_with_brute_force(
        entries in proptest::array::uniform9(-6.0..6.0f64),
        periodic in proptest::array::uniform3(any::<bool>()),
        atoms in 1usize..14,
        seed in any::<u64>(),
        spread in prop_oneof![Just(1.0), Just(8.0), Just(60.0)],
        cutoff in 1.0..7.0f64,
    ) {
        let cell = Cell::from_row_major(entries, periodic);
        // Thinner cells would keep the brute force, not the cell list, busy for long.
        prop_assume!(cell.volume() > 8.0);
        check(&system(positions(atoms, seed, spread), cell.vectors, periodic), cutoff);
    }

    #[test]
    fn large_systems_agree_with_brute_force(
        periodic in proptest::array::uniform3(any::<bool>()),
        atoms in 65usize..300,
        seed in any::<u64>(),
        scale in 2.0..12.0f64,
        spread in prop_oneof![Just(20.0), Just(40.0), Just(400.0)],
        cutoff in 2.0..6.0f64,
    ) {
        let vectors = TRICLINIC.map(|row| row.map(|x| scale * x));
        check(&system(positions(atoms, seed, spread), vectors, periodic), cutoff);
    }
}

/// Number of edges and the sum of their lengths from `ase.neighborlist.primitive_neighbor_list`
/// (ASE 3.29, cutoff 6 Angstrom, `self_interaction=False`).
#[test]
fn agrees_with_ase() {
    let agree = |s: &System, edges: usize, sum: f64, most: usize| {
        let found = check(s, 6.0);
        assert_eq!(found.len(), edges);
        let lengths: f64 = found.vector.iter().map(|&v| norm(v)).sum();
        assert!((lengths - sum).abs() < 1e-9 * sum, "{lengths} {sum}");
        let longest = (0..s.len()).map(|t| found.edges_of(t).len()).max();
        assert_eq!(longest, Some(most));
    };
    let all = [true; 3];
    let b = 4.05 / 2.0;
    let fcc = [[0.0, b, b], [b, 0.0, b], [b, b, 0.0]];
    agree(
        &system(vec![[0.0; 3]], fcc, all),
        54,
        246.44137019626112,
        54,
    );

    let a = 5.43;
    let mut diamond = Vec::new();
    for x in 0..4 {
        for y in 0..4 {
            for z in 0..4 {
                if (x + y + z) % 2 == 0 {
                    let p = [x, y, z].map(|n| 0.5 * a * f64::from(n));
                    diamond.push(p);
                    diamond.push(p.map(|x| x + 0.25 * a));
                }
            }
        }
    }
    let cube = [
        [2.0 * a, 0.0, 0.0],
        [0.0, 2.0 * a, 0.0],
        [0.0, 0.0, 2.0 * a],
    ];
    agree(&system(diamond, cube, all), 2944, 13638.041303832415, 46);

    let small = [[2.5, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.5]];
    agree(
        &system(vec![[0.3, 0.0, 0.0]], small, all),
        56,
        256.2315016725578,
        56,
    );

    // Three atoms, two of them many cells away.
    let far = vec![[0.0; 3], [-19.0, 7.0, 3.0], [100.5, 1.0, 2.25]];
    agree(
        &system(far.clone(), TRICLINIC, all),
        130,
        597.1959273581851,
        44,
    );
    agree(
        &system(far.clone(), TRICLINIC, [true, false, true]),
        24,
        105.12053992788849,
        10,
    );
    agree(
        &system(far, TRICLINIC, [false, false, true]),
        6,
        30.38749742904144,
        2,
    );

    let skewed = [[4.1, 0.0, 0.0], [30.0, 4.0, 0.0], [-50.0, 22.0, 4.0]];
    let two = vec![[0.0; 3], [1.0, 2.0, 3.1]];
    agree(&system(two, skewed, all), 56, 257.94617895754936, 28);
}

#[test]
fn the_list_does_not_depend_on_threads() {
    let vectors = [[30.0, 0.0, 0.0], [3.0, 30.0, 0.0], [0.0, -4.0, 30.0]];
    let system = system(positions(3000, 7, 50.0), vectors, [true; 3]);
    let with = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| list(&system, 6.0))
    };
    let one = with(1);
    assert_eq!(one, with(4));
    assert_eq!(one, with(7));
}

#[test]
fn atoms_at_the_same_place_do_not_see_each_other() {
    let p = [1.0, 2.0, 3.0];
    let isolated = system(vec![p, p, [1.0, 2.0, 4.0]], [[0.0; 3]; 3], [false; 3]);
    assert_eq!(check(&isolated, 3.0).source, [2, 2, 0, 1]);
    // ... but they do see each other's images.
    let cubic = [[2.5, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.5]];
    let crystal = system(vec![p, p], cubic, [true; 3]);
    assert_eq!(check(&crystal, 2.6).len(), 2 * (6 + 6));
}

#[test]
fn vectors_of_directions_that_do_not_repeat_do_not_matter() {
    let p = positions(100, 21, 15.0);
    let isolated = check(&system(p.clone(), [[0.0; 3]; 3], [false; 3]), 5.0);
    assert!(isolated.len() > 500);
    for x in [1e-200, 3.0, 1e200, f64::NAN] {
        let vectors = [[x, 0.0, 0.0], [0.0, x, 0.0], [0.0, 0.0, x]];
        assert_eq!(list(&system(p.clone(), vectors, [false; 3]), 5.0), isolated);
    }
    let chain = |x: f64| {
        let vectors = [[20.0, 0.0, 0.0], [0.0, x, 0.0], [0.0, 0.0, x]];
        list(&system(p.clone(), vectors, [true, false, false]), 5.0)
    };
    assert_eq!(chain(1e100), chain(0.0));
    assert_eq!(chain(1e-100), chain(0.0));
}

#[test]
fn a_pair_exactly_at_the_cutoff_is_kept() {
    let pair = system(vec![[0.0; 3], [6.0, 0.0, 0.0]], [[0.0; 3]; 3], [false; 3]);
    assert_eq!(check(&pair, 6.0).len(), 2);
    assert_eq!(check(&pair, 6.0f64.next_down()).len(), 0);
}

#[test]
fn no_atoms_and_lone_atoms_have_no_edges() {
    let none = list(&System::default(), 6.0);
    assert_eq!((none.target_start, none.source.len()), (vec![0], 0));
    let one = list(&system(vec![[1e8; 3]], [[0.0; 3]; 3], [false; 3]), 6.0);
    assert_eq!((one.target_start, one.source.len()), (vec![0, 0], 0));
}

#[test]
fn sparse_systems_take_little_memory() {
    // Chains far apart on a diagonal: a dense grid would have 1e15 bins.
    let mut p = Vec::new();
    for i in 0..200 {
        for j in 0..5 {
            let x = 1e6 * f64::from(i);
            p.push([x + f64::from(j), x, -x]);
        }
    }
    let isolated = system(p.clone(), [[0.0; 3]; 3], [false; 3]);
    assert_eq!(check(&isolated, 1.5).len(), 200 * 8);
    let huge = [[3e8, 0.0, 0.0], [0.0, 3e8, 0.0], [0.0, 0.0, 3e8]];
    assert_eq!(list(&system(p, huge, [true; 3]), 1.5).len(), 200 * 8);
}

#[test]
fn strongly_sheared_cells_are_searched_through_their_short_vectors() {
    // The lattice of a 4 Angstrom cube in an absurd basis.
    let cube = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]];
    let sheared = [[4.0, 0.0, 0.0], [4e4, 4.0, 0.0], [-8e4, 400.0, 4.0]];
    let p = positions(5, 3, 30.0);
    let lengths = |vectors| {
        let mut all: Vec<f64> = list(&system(p.clone(), vectors, [true; 3]), 6.0)
            .vector
            .iter()
            .map(|&v| norm(v))
            .collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (straight, skew) = (lengths(cube), lengths(sheared));
    assert_eq!(straight.len(), skew.len());
    for (a, b) in straight.iter().zip(&skew) {
        assert!((a - b).abs() < 1e-8);
    }
}

#[test]
fn hostile_systems_are_refused_quickly() {
    let refused = |s: &System, limit| neighbor_list(s, 6.0, 300, limit).unwrap_err();
    let cube = |a: f64| [[a, 0.0, 0.0], [0.0, a, 0.0], [0.0, 0.0, a]];
    for a in [1e-100, 1e-12, 1e-3, 0.05] {
        for periodic in [[true; 3], [true, true, false], [true, false, false]] {
            let atoms = if periodic == [true, false, false] && a > 1e-3 {
                9000
            } else {
                2
            };
            let p = vec![[0.0, 0.0, 0.0]; atoms];
            let error = refused(&system(p, cube(a), periodic), 20_000);
            assert!(
                matches!(error, NeighborError::TooManyEdges { found, limit: 20_000 } if found > 20_000),
                "{a} {periodic:?}: {error}"
            );
        }
    }
    // Everything within reach of everything: given up after the limit, not after 1e10 pairs.
    let crowd = system(positions(100_000, 5, 1.0), [[0.0; 3]; 3], [false; 3]);
    assert_eq!(
        refused(&crowd, 1_000_000),
        NeighborError::TooManyEdges {
            found: 1_000_001,
            limit: 1_000_000
        }
    );

    let p = vec![[0.0; 3]];
    let flat = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]];
    assert!(matches!(
        refused(&system(p.clone(), flat, [true; 3]), 9),
        NeighborError::FlatCell(_)
    ));
    assert!(matches!(
        refused(&system(p.clone(), [[0.0; 3]; 3], [true, false, false]), 9),
        NeighborError::FlatCell(_)
    ));
    assert!(matches!(
        refused(&system(p, cube(1e200), [true; 3]), 9),
        NeighborError::CellTooLarge(_)
    ));
    let nan = system(
        vec![[0.0; 3], [0.0, f64::NAN, 0.0]],
        [[0.0; 3]; 3],
        [false; 3],
    );
    assert_eq!(refused(&nan, 9), NeighborError::NotFinite { atom: 1 });
    let away = system(vec![[1e300, 0.0, 0.0]], [[0.0; 3]; 3], [false; 3]);
    assert_eq!(refused(&away, 9), NeighborError::TooFar { atom: 0 });
    let cells_away = system(vec![[0.0; 3], [9e8, 0.0, 0.0]], cube(0.5), [true; 3]);
    assert_eq!(
        refused(&cells_away, 1_000_000),
        NeighborError::TooFar { atom: 1 }
    );
}

/// Brute-force version of fairchem's rule.
fn capped(list: &NeighborList, max_neighbors: usize) -> Vec<usize> {
    let d2 = |e: usize| list.vector[e].iter().map(|x| x * x).sum::<f64>();
    (0..list.target_start.len() - 1)
        .flat_map(|t| {
            let mut sorted: Vec<f64> = list.edges_of(t).map(d2).collect();
            sorted.sort_by(f64::total_cmp);
            let limit = sorted
                .get(max_neighbors)
                .map_or(f64::INFINITY, |q| q + 0.01);
            list.edges_of(t)
                .filter(move |&e| d2(e) <= limit)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_neighbor_cap_keeps_what_fairchem_keeps() {
    let cubic = [[2.5, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.5]];
    let crystal = system(vec![[0.0; 3]], cubic, [true; 3]);
    let edges = |cap| neighbor_list(&crystal, 6.0, cap, 1000).unwrap();
    // Shells of 6, 12, 8, 6, 24 neighbours. A cap of n keeps the whole shell of neighbour n + 1.
    for (cap, kept) in [
        (0, 6),
        (5, 6),
        (6, 18),
        (17, 18),
        (18, 26),
        (26, 32),
        (32, 56),
        (56, 56),
    ] {
        let found = edges(cap);
        assert_eq!(found.len(), kept, "cap {cap}");
        assert_eq!(found.truncated, kept < 56);
    }

    // An asymmetric case: a dense cluster and atoms at its edge.
    let mut p = positions(80, 11, 4.0);
    p.extend(positions(40, 12, 14.0));
    let cluster = system(p, [[0.0; 3]; 3], [false; 3]);
    let full = list(&cluster, 6.0);
    let cut = neighbor_list(&cluster, 6.0, 30, 1_000_000).unwrap();
    let expected = capped(&full, 30);
    assert!(cut.truncated && expected.len() < full.len());
    assert_eq!(cut.len(), expected.len());
    let target = target_of(&cut);
    let full_target = target_of(&full);
    let mut lost = 0;
    for (edge, &old) in expected.iter().enumerate() {
        assert_eq!(cut.source[edge], full.source[old]);
        assert_eq!(cut.vector[edge], full.vector[old]);
        assert_eq!(target[edge], full_target[old]);
        match cut.reverse[edge] {
            u32::MAX => {
                assert!(
                    expected
                        .binary_search(&(full.reverse[old] as usize))
                        .is_err()
                );
                lost += 1;
            }
            reverse => assert_eq!(cut.reverse[reverse as usize] as usize, edge),
        }
    }
    assert!(lost > 0, "no edge lost its reverse");
}
