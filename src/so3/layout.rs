//! Where each spherical-harmonic coefficient lies.
//!
//! Atoms use *L-order*: row(l, m) = l^2 + l + m, all (lmax + 1)^2 rows. Edges use *m-primary
//! order*, keeping |m| <= mmax only: first m = 0 for l = 0..lmax, then for m = 1..mmax the +m rows
//! (l = m..lmax) and the -m rows (l = m..lmax). Rotations about the polar axis mix only (l, +m)
//! with (l, -m), so in this order an SO(2)-equivariant linear map is one dense block per m.

/// The rows of one m > 0 in m-primary order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MBlock {
    /// The order, 1..=mmax.
    pub m: usize,
    /// Number of degrees: lmax - m + 1. The block holds `degrees` +m rows, then as many -m rows.
    pub degrees: usize,
    /// First row (the +m row of l = m).
    pub row: usize,
}

/// Index layout for one pair (lmax, mmax).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Largest degree.
    pub lmax: usize,
    /// Largest order kept on edges, at most lmax.
    pub mmax: usize,
    /// (lmax + 1)^2, rows of an atom.
    pub rows: usize,
    /// Rows of an edge.
    pub edge_rows: usize,
    /// Degree of each edge row.
    pub edge_row_degree: Vec<usize>,
    /// Radial row of each edge row: +m and -m of one degree share it.
    pub radial_row: Vec<usize>,
    /// Edge rows of each degree, m = -min(l, mmax)..=min(l, mmax): the rows of its Wigner block.
    pub degree_rows: Vec<Vec<usize>>,
    /// The m > 0 blocks.
    pub blocks: Vec<MBlock>,
    /// Offset of each degree in a packed Wigner matrix. Degree l holds 2 min(l, mmax) + 1 rows
    /// (m = -min..min) of 2l + 1 numbers.
    pub wigner_offset: Vec<usize>,
    /// Length of a packed Wigner matrix.
    pub wigner_len: usize,
}

impl Layout {
    /// The layout for degrees up to `lmax` with orders up to `mmax` on edges.
    ///
    /// # Panics
    /// If `mmax > lmax`; configurations are checked before.
    pub fn new(lmax: usize, mmax: usize) -> Layout {
        assert!(mmax <= lmax, "mmax {mmax} exceeds lmax {lmax}");
        let mut edge_row_degree: Vec<usize> = (0..=lmax).collect();
        let mut radial_row = edge_row_degree.clone();
        let mut radial_rows = radial_row.len();
        let mut blocks = Vec::new();
        for m in 1..=mmax {
            let shared = radial_rows..radial_rows + lmax - m + 1;
            radial_row.extend(shared.clone());
            radial_rows = shared.end;
            radial_row.extend(shared);
            blocks.push(MBlock {
                m,
                degrees: lmax - m + 1,
                row: edge_row_degree.len(),
            });
            edge_row_degree.extend(m..=lmax);
            edge_row_degree.extend(m..=lmax);
        }
        let mut wigner_offset = Vec::new();
        let mut wigner_len = 0;
        for l in 0..=lmax {
            wigner_offset.push(wigner_len);
            wigner_len += (2 * l.min(mmax) + 1) * (2 * l + 1);
        }
        let mut layout = Layout {
            degree_rows: vec![],
            lmax,
            mmax,
            rows: (lmax + 1) * (lmax + 1),
            edge_rows: edge_row_degree.len(),
            edge_row_degree,
            radial_row,
            blocks,
            wigner_offset,
            wigner_len,
        };
        layout.degree_rows = (0..=lmax)
            .map(|l| {
                let kept = l.min(mmax) as isize;
                (-kept..=kept).map(|m| layout.edge_row(l, m)).collect()
            })
            .collect();
        layout
    }

    /// Edge row of (l, m), |m| <= min(l, mmax).
    pub fn edge_row(&self, l: usize, m: isize) -> usize {
        if m == 0 {
            return l;
        }
        let block = &self.blocks[m.unsigned_abs() - 1];
        let within = l - block.m;
        if m > 0 {
            block.row + within
        } else {
            block.row + block.degrees + within
        }
    }

    /// Degree of each atom row.
    pub fn row_degree(&self) -> impl Iterator<Item = usize> {
        (0..=self.lmax).flat_map(|l| std::iter::repeat_n(l, 2 * l + 1))
    }

    /// Length of a radial row for `channels` input channels: every m has its own numbers, shared
    /// by +m and -m.
    pub fn radial_width(&self, channels: usize) -> usize {
        (self.lmax + 1 + self.blocks.iter().map(|b| b.degrees).sum::<usize>()) * channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m_primary_order_of_lmax_2() {
        let layout = Layout::new(2, 2);
        let mut rows = vec![usize::MAX; 9];
        for l in 0..=2usize {
            for m in -(l as isize)..=l as isize {
                rows[(l * l + l).checked_add_signed(m).unwrap()] = layout.edge_row(l, m);
            }
        }
        assert_eq!(rows, [0, 5, 1, 3, 8, 6, 2, 4, 7]);
        assert_eq!(layout.wigner_len, 35);
    }

    #[test]
    fn reduced_rows_of_lmax_4_mmax_2() {
        let layout = Layout::new(4, 2);
        assert_eq!(layout.edge_rows, 19);
        assert_eq!(layout.edge_row_degree[..9], [0, 1, 2, 3, 4, 1, 2, 3, 4]);
        assert_eq!(layout.wigner_len, 1 + 9 + 25 + 35 + 45);
        assert_eq!(layout.radial_width(10), 10 * (5 + 4 + 3));
        assert_eq!(layout.radial_row[5..13], [5, 6, 7, 8, 5, 6, 7, 8]);
        assert_eq!(layout.radial_row[13..], [9, 10, 11, 9, 10, 11]);
    }
}
