//! The radial networks of narrow models as piecewise polynomials of the distance.
//!
//! For a pair of elements a radial network is a smooth function of the distance alone: an MLP of Gaussians
//! that are two spacings wide. In a narrow model the polynomials are small enough to stay in the cache, and
//! an edge takes seven products per number instead of the three layers; nothing has to be kept for the
//! gradient, which is the slope of the same polynomials.
//!
//! A polynomial is made in double precision from the slope of a Chebyshev series of the network, so that
//! forces are as good as energies, and its error is bounded by what was cut off: an interval is divided
//! until that is below the rounding of single precision. Tables are functions of the model and the two
//! elements alone, and whether a system is evaluated with them depends on its elements alone: results do not
//! depend on what else is in a batch.

use super::degree_two;
use super::geometry::{Gaussians, Geometry};
use super::radial;
use super::real::{Real, vectorised};
use super::vector::WIDEST;
use super::weights::RadialNetwork;
use crate::backend::{Structure, WeightSource};
use crate::nn::{Buf, Op, Program};
use pulp::Simd;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::f64::consts::PI;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Coefficients of a polynomial: degree 6.
const COEFFICIENTS: usize = 7;
/// Points of an interval where the network is evaluated.
const NODES: usize = 10;
/// Intervals up to the cutoff. One Gaussian of the narrowest models is about nine of them wide.
const INTERVALS: usize = 64;
/// Into how many parts an interval is divided where networks are less smooth.
const PARTS: [usize; 4] = [1, 2, 4, 8];
/// Most parts of a table, of all intervals together.
const PARTS_IN_ALL: usize = 192;
/// Largest error of a value, of the largest value of a network. Single precision rounds to 6e-8.
const VALUE_ERROR: f64 = 2e-8;
/// Largest error of a slope, of the largest slope of a network.
const SLOPE_ERROR: f64 = f32::EPSILON as f64;
/// Numbers of an edge, all networks together, up to which there are tables: with more they do not stay in
/// the cache, and the matrix products run at their peak.
const WIDEST_ROW: usize = 1024;
/// Most elements of a system with tables.
const ELEMENTS: usize = 8;
/// Edges whose polynomials are looked up by one thread.
const EDGES_AT_A_TIME: usize = 1024;
/// Memory for tables, bytes. Those of a system in hand are held besides.
const CACHE_BYTES: usize = 64 << 20;

/// The networks of one pair of elements.
pub(super) struct Table<T> {
    /// Of each interval: how many parts lie before it, and how many it has.
    starts: Vec<[u32; 2]>,
    /// `[part][row / 16][7][16]`, rows of all networks.
    data: Vec<T>,
}

/// Where the polynomials of an edge are.
#[derive(Clone, Copy, Default)]
pub(super) struct Place<T> {
    /// Which table of the run.
    table: u32,
    /// First number of the interval.
    first: u32,
    /// Place in the interval, -1 to 1.
    t: T,
    /// dt/dd, 1 / Angstrom.
    slope: T,
}

/// A pair of elements, source and target; `None` where the polynomials do not reach their bounds.
type Entry<T> = ((u8, u8), Option<Arc<Table<T>>>);

/// Makes tables, and holds the last ones.
pub(super) struct Tables<T> {
    networks: Vec<RadialNetwork>,
    /// By buffer: where the numbers of a network begin in a row.
    columns: Vec<usize>,
    /// Numbers of a row.
    width: usize,
    basis: usize,
    cutoff: f64,
    polynomials: Fit,
    /// Most recently used last.
    cache: Mutex<VecDeque<Entry<T>>>,
}

/// The tables of one system of a batch.
struct Pairs {
    /// By atom: which of the system's elements.
    kinds: Vec<u8>,
    /// `[target kind][source kind]`, places in the run's list of tables.
    tables: Vec<u32>,
}

/// The tables of one run.
pub(super) struct RunTables<'a, T> {
    makes: Option<&'a Tables<T>>,
    /// By system; `None` where the networks are not tabulated.
    pairs: Vec<Option<Pairs>>,
    tables: Vec<Arc<Table<T>>>,
    /// By edge, if any system's networks are tabulated.
    places: Vec<Place<T>>,
}

/// The points of an interval: zeros of T_10.
fn nodes() -> [f64; NODES] {
    std::array::from_fn(|j| ((2 * j + 1) as f64 * PI / (2 * NODES) as f64).cos())
}

/// From values at the nodes to polynomials, many at a time.
struct Fit {
    /// Chebyshev series of the values. `[term][node]`
    series: [[f64; NODES]; NODES],
    /// Powers of t in the polynomials whose slopes are T_0 to T_5. `[term][power]`
    powers: [[f64; COEFFICIENTS]; COEFFICIENTS - 1],
    /// Means of the powers over the nodes.
    means: [f64; COEFFICIENTS],
}

/// What is found of one interval: rows of `width` numbers.
struct Interval {
    width: usize,
    /// Series of the values. `[term][width]`
    values: Vec<f64>,
    /// Series of their slopes. `[term][width]`
    slopes: Vec<f64>,
    /// Polynomials. `[power][width]`
    polynomials: Vec<f64>,
}

/// sum += factor x
#[inline(always)]
fn add_times(factor: f64, x: &[f64], sum: &mut [f64]) {
    let x = &x[..sum.len()];
    for c in 0..sum.len() {
        sum[c] = factor.mul_add(x[c], sum[c]);
    }
}

impl Fit {
    fn new() -> Fit {
        let points = nodes();
        let series = std::array::from_fn(|n| {
            let weight = if n == 0 { 1.0 } else { 2.0 } / NODES as f64;
            points.map(|t| weight * (n as f64 * t.acos()).cos())
        });
        // T_n = 2 t T_(n-1) - T_(n-2), integrated term by term.
        let mut chebyshev = [[0.0; COEFFICIENTS]; COEFFICIENTS - 1];
        chebyshev[0][0] = 1.0;
        chebyshev[1][1] = 1.0;
        for n in 2..COEFFICIENTS - 1 {
            for k in 0..COEFFICIENTS {
                let shifted = if k > 0 { chebyshev[n - 1][k - 1] } else { 0.0 };
                chebyshev[n][k] = 2.0 * shifted - chebyshev[n - 2][k];
            }
        }
        let powers = chebyshev
            .map(|t| std::array::from_fn(|k| if k > 0 { t[k - 1] / k as f64 } else { 0.0 }));
        let mean = |k: usize| points.iter().map(|t| t.powi(k as i32)).sum::<f64>() / NODES as f64;
        Fit {
            series,
            powers,
            means: std::array::from_fn(mean),
        }
    }

    /// Polynomials whose slopes are those of the Chebyshev series through the values, cut off after degree
    /// 5, and whose means over the nodes are those of the values. `values` are `[node][width]`.
    fn apply(&self, values: &[f64], out: &mut Interval) {
        let width = out.width;
        let Interval {
            values: series,
            slopes,
            polynomials,
            ..
        } = out;
        for x in [&mut *series, &mut *slopes, &mut *polynomials] {
            x.fill(0.0);
        }
        vectorised(
            #[inline(always)]
            || {
                for (factors, term) in self.series.iter().zip(series.chunks_exact_mut(width)) {
                    for (factor, values) in factors.iter().zip(values.chunks_exact(width)) {
                        add_times(*factor, values, term);
                    }
                }
                // s_(n-1) = s_(n+1) + 2 n c_n, and half of it for s_0.
                for n in (1..NODES).rev() {
                    let (below, above) = slopes.split_at_mut(n * width);
                    let below = &mut below[(n - 1) * width..];
                    let half = if n == 1 { 0.5 } else { 1.0 };
                    add_times(half * 2.0 * n as f64, &series[n * width..], below);
                    if n + 1 < NODES {
                        add_times(half, &above[width..], below);
                    }
                }
                let (constants, others) = polynomials.split_at_mut(width);
                for (powers, slopes) in self.powers.iter().zip(slopes.chunks_exact(width)) {
                    for (power, out) in powers[1..].iter().zip(others.chunks_exact_mut(width)) {
                        add_times(*power, slopes, out);
                    }
                }
                constants.copy_from_slice(&series[..width]);
                for (mean, power) in self.means[1..].iter().zip(others.chunks_exact(width)) {
                    add_times(-mean, power, constants);
                }
            },
        );
    }
}

impl Interval {
    fn new(width: usize) -> Interval {
        Interval {
            width,
            values: vec![0.0; NODES * width],
            slopes: vec![0.0; NODES * width],
            polynomials: vec![0.0; COEFFICIENTS * width],
        }
    }

    /// At most by how much slopes differ from those of the series: what was cut off; and what the series
    /// itself leaves out, by its last term.
    fn slope_errors(&self) -> impl Iterator<Item = f64> {
        let terms = &self.slopes[(COEFFICIENTS - 1) * self.width..];
        let last = &self.values[(NODES - 1) * self.width..];
        (0..self.width).map(move |c| {
            let cut_off: f64 = terms[c..].iter().step_by(self.width).map(|s| s.abs()).sum();
            cut_off + (NODES * NODES) as f64 * last[c].abs()
        })
    }
}

/// An interval, into how many parts it is divided, and which of them.
type Part = [usize; 3];

/// The polynomials of a part of an interval.
#[derive(Default)]
struct Fitted<T> {
    /// `[row / 16][7][16]`
    numbers: Vec<T>,
    /// Largest value and mean slope of each network.
    largest: Vec<[f64; 2]>,
    /// Error of the slope of each network.
    errors: Vec<f64>,
}

impl<T: Real> Fitted<T> {
    /// Adds those of a network.
    fn add(&mut self, values: &[f64], found: &Interval) {
        let width = found.width;
        let largest = |x: &[f64]| x.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        // The steepest place is at least as steep as the mean.
        self.largest
            .push([largest(values), largest(&found.slopes[..width])]);
        // (`max` would not see what is not a number.)
        let error = found.slope_errors().fold(0.0, |m: f64, e| {
            m.max(if e.is_nan() { f64::INFINITY } else { e })
        });
        self.errors.push(error);
        for group in 0..width / WIDEST {
            for power in found.polynomials.chunks_exact(width) {
                let row = &power[group * WIDEST..][..WIDEST];
                self.numbers.extend(row.iter().map(|&x| T::from_f64(x)));
            }
        }
    }

    /// Whether the errors are small enough; `bounds` are the largest values, and slopes in an interval that
    /// is not divided.
    fn is_good(&self, parts: usize, bounds: &[[f64; 2]]) -> bool {
        self.errors
            .iter()
            .zip(bounds)
            .all(|(error, [value, slope])| {
                // Terms of the slope from degree 6 on are at most a fifth as large when integrated.
                0.2 * error <= VALUE_ERROR * value && parts as f64 * error <= SLOPE_ERROR * slope
            })
    }
}

impl<T: Real> Tables<T> {
    /// For a program in single precision whose rows are narrow.
    pub fn new(program: &Program, source: &dyn WeightSource) -> Option<Tables<T>> {
        let (mut width, mut columns) = (0, vec![0; program.buffers.len()]);
        let mut networks = Vec::new();
        for op in &program.ops {
            if let Op::Radial { mlp, out, .. } = op {
                columns[out.0] = width;
                width += program.width(*out);
                networks.push(mlp);
            }
        }
        let fits = size_of::<T>() == 4
            && degree_two::fits(&program.layout)
            && program.channels.is_multiple_of(WIDEST)
            && (1..=WIDEST_ROW).contains(&width);
        fits.then(|| Tables {
            networks: networks
                .into_iter()
                .map(|mlp| RadialNetwork::new(program, source, mlp))
                .collect(),
            columns,
            width,
            basis: program.basis,
            cutoff: program.cutoff,
            polynomials: Fit::new(),
            cache: Mutex::new(VecDeque::new()),
        })
    }

    /// The tables of a system, which are added to those of the run; `None` for a system that has too many
    /// elements, or elements for which polynomials are not good enough.
    fn of_system(&self, numbers: &[u8], run: &mut Vec<Arc<Table<T>>>) -> Option<Pairs> {
        let mut elements = numbers.to_vec();
        elements.sort_unstable();
        elements.dedup();
        if elements.len() > ELEMENTS {
            return None;
        }
        let wanted: Vec<(u8, u8)> = elements
            .iter()
            .flat_map(|&target| elements.iter().map(move |&source| (source, target)))
            .collect();
        let mut found: Vec<Option<Option<Arc<Table<T>>>>> =
            wanted.iter().map(|&pair| self.held(pair)).collect();
        let mut missing: Vec<_> = found
            .iter_mut()
            .zip(&wanted)
            .filter(|(found, _)| found.is_none())
            .collect();
        missing
            .par_iter_mut()
            .for_each(|(found, pair)| **found = Some(self.make(**pair).map(Arc::new)));
        let found: Vec<Option<Arc<Table<T>>>> = found.into_iter().flatten().collect();
        self.hold(&wanted, &found);
        let found: Vec<Arc<Table<T>>> = found.into_iter().collect::<Option<_>>()?;
        let kinds = numbers
            .iter()
            .map(|z| elements.partition_point(|e| e < z) as u8)
            .collect();
        let tables = found
            .into_iter()
            .map(|table| {
                let place = run.iter().position(|t| Arc::ptr_eq(t, &table));
                place.unwrap_or_else(|| {
                    run.push(table);
                    run.len() - 1
                }) as u32
            })
            .collect();
        Some(Pairs { kinds, tables })
    }

    fn cache(&self) -> MutexGuard<'_, VecDeque<Entry<T>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, pair: (u8, u8)) -> Option<Option<Arc<Table<T>>>> {
        let cache = self.cache();
        let entry = cache.iter().find(|(key, _)| *key == pair);
        entry.map(|(_, table)| table.clone())
    }

    /// Puts tables last, and drops the first ones above the bound.
    fn hold(&self, pairs: &[(u8, u8)], tables: &[Option<Arc<Table<T>>>]) {
        let mut cache = self.cache();
        cache.retain(|(key, _)| !pairs.contains(key));
        cache.extend(pairs.iter().copied().zip(tables.iter().cloned()));
        let bytes = |table: &Option<Arc<Table<T>>>| {
            table
                .as_ref()
                .map_or(0, |table| table.data.len() * size_of::<T>())
        };
        let mut held: usize = cache.iter().map(|(_, table)| bytes(table)).sum();
        while held > CACHE_BYTES && cache.len() > pairs.len() {
            held -= cache.pop_front().map_or(0, |(_, table)| bytes(&table));
        }
    }

    fn make(&self, pair: (u8, u8)) -> Option<Table<T>> {
        let whole: Vec<Part> = (0..INTERVALS).map(|i| [i, 1, 0]).collect();
        let mut fitted = self.fit(pair, &whole);
        // How large and how steep networks are, taken from all of them.
        let bounds: Vec<[f64; 2]> = (0..self.networks.len())
            .map(|network| {
                [0, 1].map(|k| {
                    let of_parts = fitted.iter().map(|part| part.largest[network][k]);
                    of_parts.fold(0.0, f64::max)
                })
            })
            .collect();
        let mut found: Vec<Vec<T>> = vec![Vec::new(); INTERVALS];
        let mut wanted: Vec<usize> = (0..INTERVALS).collect();
        for (level, parts) in PARTS.into_iter().enumerate() {
            if level > 0 {
                let divided: Vec<Part> = wanted
                    .iter()
                    .flat_map(|&i| (0..parts).map(move |part| [i, parts, part]))
                    .collect();
                fitted = self.fit(pair, &divided);
            }
            let mut rest = Vec::new();
            for (&interval, fitted) in wanted.iter().zip(fitted.chunks_exact(parts)) {
                if fitted.iter().all(|part| part.is_good(parts, &bounds)) {
                    found[interval] = fitted.iter().flat_map(|p| p.numbers.clone()).collect();
                } else {
                    rest.push(interval);
                }
            }
            wanted = rest;
            if wanted.is_empty() {
                break;
            }
        }
        let of_part = self.width * COEFFICIENTS;
        let mut starts = Vec::with_capacity(INTERVALS);
        let mut before = 0;
        for numbers in &found {
            let parts = (numbers.len() / of_part) as u32;
            starts.push([before, parts]);
            before += parts;
        }
        let fits = wanted.is_empty() && before as usize <= PARTS_IN_ALL;
        fits.then(|| Table {
            starts,
            data: found.concat(),
        })
    }

    /// The polynomials of some parts of intervals.
    fn fit(&self, pair: (u8, u8), parts: &[Part]) -> Vec<Fitted<T>> {
        let points = nodes();
        let gaussians = Gaussians::new(self.basis, self.cutoff);
        let mut expanded = vec![0.0; parts.len() * NODES * self.basis];
        for (row, out) in expanded.chunks_exact_mut(self.basis).enumerate() {
            let [interval, parts, part] = parts[row / NODES];
            let t = 0.5 * (points[row % NODES] + 1.0);
            let x = interval as f64 + (part as f64 + t) / parts as f64;
            gaussians.fill(x * self.cutoff / INTERVALS as f64, out);
        }
        let mut out: Vec<Fitted<T>> = parts.iter().map(|_| Fitted::default()).collect();
        for network in &self.networks {
            let width = network.width();
            let values = radial::of_pair(network, pair, &expanded);
            let mut found = Interval::new(width);
            for (values, out) in values.chunks_exact(NODES * width).zip(&mut out) {
                self.polynomials.apply(values, &mut found);
                out.add(values, &found);
            }
        }
        out
    }

    /// Where an edge's polynomials are.
    fn place(
        &self,
        pairs: &Pairs,
        (source, target): (usize, usize),
        distance: f64,
        tables: &[Arc<Table<T>>],
    ) -> Place<T> {
        let elements = pairs.tables.len().isqrt();
        let pair = usize::from(pairs.kinds[target]) * elements + usize::from(pairs.kinds[source]);
        let table = pairs.tables[pair];
        let per_angstrom = INTERVALS as f64 / self.cutoff;
        let x = distance * per_angstrom;
        let interval = (x as usize).min(INTERVALS - 1);
        let [before, parts] = tables[table as usize].starts[interval];
        let y = (x - interval as f64) * f64::from(parts);
        let part = (y as u32).min(parts - 1);
        Place {
            table,
            first: (before + part) * (self.width * COEFFICIENTS) as u32,
            t: T::from_f64(2.0 * (y - f64::from(part)) - 1.0),
            slope: T::from_f64(2.0 * per_angstrom * f64::from(parts)),
        }
    }
}

impl<'a, T: Real> RunTables<'a, T> {
    /// Finds or makes the tables of a batch.
    pub fn new(makes: Option<&'a Tables<T>>, batch: &[Structure]) -> RunTables<'a, T> {
        let mut tables = Vec::new();
        let pairs = batch
            .iter()
            .map(|structure| makes?.of_system(structure.numbers, &mut tables))
            .collect();
        RunTables {
            makes,
            pairs,
            tables,
            places: Vec::new(),
        }
    }

    /// Whether the networks of a system are tabulated.
    pub fn tabulated(&self, system: usize) -> bool {
        self.pairs[system].is_some()
    }

    /// Finds the polynomials of all edges; `systems` are the first atoms and the edges of each.
    pub fn locate(
        &mut self,
        geometry: &Geometry<T>,
        systems: impl Iterator<Item = (usize, Range<usize>)>,
    ) {
        let Some(makes) = self.makes else { return };
        self.places.resize(geometry.source.len(), Place::default());
        for ((first, edges), pairs) in systems.zip(&self.pairs) {
            let Some(pairs) = pairs else { continue };
            let atom = |atom: u32| atom as usize - first;
            self.places[edges.clone()]
                .par_chunks_mut(EDGES_AT_A_TIME)
                .zip(edges.into_par_iter().step_by(EDGES_AT_A_TIME))
                .for_each(|(places, first)| {
                    for (e, place) in (first..).zip(places) {
                        let atoms = (atom(geometry.source[e]), atom(geometry.target[e]));
                        *place = makes.place(pairs, atoms, geometry.distance[e], &self.tables);
                    }
                });
        }
    }

    /// The numbers of the network with this output.
    pub fn rows(&self, radial: Buf) -> RadialRows<'_, T> {
        RadialRows::Tabulated {
            places: &self.places,
            tables: &self.tables,
            column: self.makes.map_or(0, |makes| makes.columns[radial.0]),
        }
    }
}

/// The radial numbers of one network, edge by edge.
#[derive(Clone, Copy)]
pub(super) enum RadialRows<'a, T> {
    /// As the network has written them, of the edges of a tile or of all.
    Written(&'a [T]),
    /// From tables, by edge of the batch.
    Tabulated {
        /// By edge.
        places: &'a [Place<T>],
        /// Of the run.
        tables: &'a [Arc<Table<T>>],
        /// Where the network's numbers begin.
        column: usize,
    },
}

/// The radial numbers of one edge, as vectors.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, S: Simd, T: Real> {
    data: &'a [T::Vector<S>],
    t: T::Vector<S>,
    /// dt/dd, 1 / Angstrom.
    pub slope: T,
}

impl<'a, T: Real> RadialRows<'a, T> {
    /// Whether they come from tables.
    pub fn tabulated(&self) -> bool {
        matches!(self, RadialRows::Tabulated { .. })
    }

    /// Row `i` of what was written, or that of edge `e` of the batch; `width` vectors.
    #[inline(always)]
    pub fn row<S: Simd>(&self, simd: S, i: usize, e: usize, width: usize) -> Row<'a, S, T> {
        match *self {
            RadialRows::Written(numbers) => Row {
                data: &T::vectors::<S>(numbers)[i * width..][..width],
                t: T::splat(simd, T::ZERO),
                slope: T::ZERO,
            },
            RadialRows::Tabulated {
                places,
                tables,
                column,
            } => {
                let place = places[e];
                let first = place.first as usize + column * COEFFICIENTS;
                let data = &tables[place.table as usize].data[first..];
                Row {
                    data: &T::vectors::<S>(data)[..width * COEFFICIENTS],
                    t: T::splat(simd, place.t),
                    slope: place.slope,
                }
            }
        }
    }
}

impl<S: Simd, T: Real> Row<'_, S, T> {
    /// The coefficients of vector `j`, and how far apart they are.
    #[inline(always)]
    fn polynomial(&self, j: usize) -> (&[T::Vector<S>], usize) {
        let per_group = WIDEST / T::lanes::<S>();
        let first = j / per_group * COEFFICIENTS * per_group + j % per_group;
        let len = (COEFFICIENTS - 1) * per_group + 1;
        (&self.data[first..][..len], per_group)
    }

    /// Vector `j`.
    #[inline(always)]
    pub fn value<const TABULATED: bool>(&self, simd: S, j: usize) -> T::Vector<S> {
        if !TABULATED {
            return self.data[j];
        }
        let (c, stride) = self.polynomial(j);
        let mut value = c[(COEFFICIENTS - 1) * stride];
        for k in (0..COEFFICIENTS - 1).rev() {
            value = T::fused(simd, value, self.t, c[k * stride]);
        }
        value
    }

    /// Vector `j` and its slope in t, which is zero for what was written.
    #[inline(always)]
    pub fn value_and_slope<const TABULATED: bool>(&self, simd: S, j: usize) -> [T::Vector<S>; 2] {
        if !TABULATED {
            return [self.data[j], T::splat(simd, T::ZERO)];
        }
        let (c, stride) = self.polynomial(j);
        let mut slope = c[(COEFFICIENTS - 1) * stride];
        let mut value = T::fused(simd, slope, self.t, c[(COEFFICIENTS - 2) * stride]);
        for k in (0..COEFFICIENTS - 2).rev() {
            slope = T::fused(simd, slope, self.t, value);
            value = T::fused(simd, value, self.t, c[k * stride]);
        }
        [value, slope]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::WeightData;
    use crate::nn::program::{Builder, Scope};
    use crate::so3::Layout;
    use std::borrow::Cow;

    const ELEMENTS_KNOWN: usize = 20;
    const CHANNELS: usize = 16;
    /// See [`Weights`]: enough to divide intervals, and not too much for a table.
    const SHARPER: f64 = 20.0;

    /// Weights of networks whose first SiLU gets numbers `sharpness` times as large as usual: with very
    /// large ones it has a corner.
    struct Weights {
        program: Arc<Program>,
        sharpness: f64,
    }

    impl WeightSource for Weights {
        fn weight(&self, name: &str) -> WeightData<'_> {
            let slot = self.program.weights.iter().find(|w| w.name == name);
            let shape = &slot.expect("asked for what is in the program").shape;
            let count: usize = shape.iter().product();
            let fan_in = if shape.len() > 1 { shape[1] } else { 1 } as f64;
            let factor = if name.ends_with("net.1.weight") {
                self.sharpness
            } else {
                1.0
            };
            // Scale of a LayerNorm: about 1.
            let offset = if name.contains("net.1.w") || name.contains("net.4.w") {
                1.0
            } else {
                0.0
            };
            let seed: f64 = name.bytes().map(f64::from).sum();
            let number = |i: usize| {
                factor * (offset + (seed + 1.7 * i as f64 * i as f64).sin() / fan_in.sqrt())
            };
            WeightData::F64(Cow::Owned((0..count).map(number).collect()))
        }
    }

    fn tables(sharpness: f64) -> Option<Tables<f32>> {
        let mut b = Builder::new(Layout::new(2, 2), CHANNELS, 6.0, 16);
        let (source, target) = (Scope::new("source"), Scope::new("target"));
        let x = b.embed_atoms(&Scope::new("atoms"), ELEMENTS_KNOWN);
        let mut radial = |name: &str, width: usize| {
            let both = (&source, &target);
            b.radial(&Scope::new(name), both, ELEMENTS_KNOWN, 16, width)
        };
        let first = radial("degree", 3 * CHANNELS);
        let second = radial("block", 12 * CHANNELS);
        let x = b.scatter_radial(first, x, 0.1);
        b.gather_rotate_scale(x, second);
        let energy = b.linear(
            "energy",
            &Scope::new("energy"),
            x,
            (CHANNELS, 1),
            false,
            false,
        );
        let program = Arc::new(b.finish(energy));
        let weights = Weights {
            program: program.clone(),
            sharpness,
        };
        Tables::new(&program, &weights)
    }

    #[test]
    fn polynomials_of_their_degree_are_exact() {
        let c = [0.3, -1.0, 0.5, 0.25, -0.7, 0.1, 0.9];
        let value = |t: f64| c.iter().rev().fold(0.0, |sum, c| sum * t + c);
        // A second polynomial beside it, of a degree too high for it.
        let values: Vec<f64> = nodes()
            .into_iter()
            .flat_map(|t| [value(t), t.powi(8)])
            .collect();
        let mut found = Interval::new(2);
        Fit::new().apply(&values, &mut found);
        for (k, c) in c.into_iter().enumerate() {
            let fitted = found.polynomials[2 * k];
            assert!((fitted - c).abs() < 1e-12, "{fitted} {c}");
        }
        let errors: Vec<f64> = found.slope_errors().collect();
        assert!(errors[0] < 1e-11 && errors[1] > 0.1, "{errors:?}");
    }

    #[test]
    fn tables_are_the_networks_to_rounding() {
        compare(1.0, false);
    }

    #[test]
    fn less_smooth_networks_have_divided_intervals() {
        compare(SHARPER, true);
    }

    /// Values and slopes against the networks themselves, everywhere up to the cutoff.
    fn compare(sharpness: f64, divided: bool) {
        let tables = tables(sharpness).unwrap();
        let numbers = [8, 1];
        let mut list = Vec::new();
        let pairs = tables.of_system(&numbers, &mut list).unwrap();
        assert_eq!(list.len(), 4);
        let parts = |table: &Table<f32>| table.starts.iter().map(|[_, parts]| parts).sum::<u32>();
        for table in &list {
            assert_eq!(parts(table) > INTERVALS as u32, divided, "{}", parts(table));
        }
        let distances: Vec<f64> = (0..700).map(|i| 0.05 + 0.0085 * f64::from(i)).collect();
        const STEP: f64 = 1e-4;
        let moved = |by: f64| -> Vec<f64> {
            let gaussians = Gaussians::new(tables.basis, tables.cutoff);
            let mut out = vec![0.0; distances.len() * tables.basis];
            for (d, out) in distances.iter().zip(out.chunks_exact_mut(tables.basis)) {
                gaussians.fill(d + by, out);
            }
            out
        };
        let steps = [-2.0, -1.0, 0.0, 1.0, 2.0].map(|k| moved(k * STEP));
        for (source, target) in [(0, 0), (0, 1), (1, 0)] {
            let pair = (numbers[source], numbers[target]);
            let mut column = 0;
            for network in &tables.networks {
                let [a, b, at, c, d] = steps.each_ref().map(|g| radial::of_pair(network, pair, g));
                let slope = |i: usize| (a[i] - 8.0 * b[i] + 8.0 * c[i] - d[i]) / (12.0 * STEP);
                let largest = at.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                let steepest = (0..at.len()).fold(0.0f64, |m, i| m.max(slope(i).abs()));
                assert!(largest > 0.1 && steepest > 0.1, "{largest} {steepest}");
                let width = network.width();
                for (row, &distance) in distances.iter().enumerate() {
                    let places = [tables.place(&pairs, (source, target), distance, &list)];
                    let rows = RadialRows::Tabulated {
                        places: &places,
                        tables: &list,
                        column,
                    };
                    let simd = pulp::Scalar;
                    let numbers = rows.row(simd, 0, 0, width);
                    for j in 0..width {
                        let [value, its_slope] = numbers.value_and_slope::<true>(simd, j);
                        assert_eq!(numbers.value::<true>(simd, j), value);
                        let error = (f64::from(value) - at[row * width + j]).abs() / largest;
                        assert!(error < 2e-7, "value at {distance}: {error:e}");
                        let its_slope = f64::from(its_slope * numbers.slope);
                        let error = (its_slope - slope(row * width + j)).abs() / steepest;
                        assert!(error < 1e-6, "slope at {distance}: {error:e}");
                    }
                }
                column += width;
            }
        }
    }

    #[test]
    fn too_many_elements_and_too_sharp_networks_have_no_tables() {
        let numbers: Vec<u8> = (1..=ELEMENTS as u8).collect();
        let smooth = tables(1.0).unwrap();
        let mut list = Vec::new();
        assert!(smooth.of_system(&numbers, &mut list).is_some());
        assert_eq!(list.len(), ELEMENTS * ELEMENTS);
        let numbers: Vec<u8> = (1..=ELEMENTS as u8 + 1).collect();
        assert!(smooth.of_system(&numbers, &mut list).is_none());

        let sharp = tables(3000.0).unwrap();
        let mut list = Vec::new();
        assert!(sharp.of_system(&[1], &mut list).is_none());
        assert!(list.is_empty());
        // Nothing is tried twice.
        assert!(matches!(sharp.held((1, 1)), Some(None)));
    }

    #[test]
    fn tables_are_held_up_to_a_bound() {
        let tables = tables(1.0).unwrap();
        for first in [1, 5, 9, 13] {
            let numbers: Vec<u8> = (first..first + ELEMENTS as u8 - 2).collect();
            tables.of_system(&numbers, &mut Vec::new()).unwrap();
        }
        let cache = tables.cache();
        let bytes = |table: &Table<f32>| table.data.len() * size_of::<f32>();
        let held: usize = cache
            .iter()
            .filter_map(|(_, t)| t.as_deref())
            .map(bytes)
            .sum();
        assert!(held <= CACHE_BYTES && held > 0, "{held}");
        let last = cache.back().map(|(pair, _)| *pair);
        assert_eq!(last, Some((18, 18)));
    }
}
