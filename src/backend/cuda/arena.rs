//! Where buffers lie in one stretch of memory: buffers that are not in use at the same time share
//! their place.

/// A buffer in use from step `start` to step `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use<K> {
    /// Whose.
    pub key: K,
    /// Size for each row, bytes.
    pub bytes: usize,
    /// First step.
    pub start: usize,
    /// Last step.
    pub end: usize,
}

/// Where each buffer lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena<K> {
    places: Vec<(K, usize)>,
    /// Size of the whole for each row, bytes.
    pub bytes: usize,
}

/// Offsets are multiples of this, bytes a row: 16-byte accesses stay aligned for any number of
/// rows.
const ALIGN: usize = 16;

impl<K: Copy + PartialEq> Arena<K> {
    /// First fit, the longest-lived and largest first.
    pub fn plan(uses: &[Use<K>]) -> Arena<K> {
        let mut order: Vec<&Use<K>> = uses.iter().collect();
        order.sort_by_key(|u| {
            (
                std::cmp::Reverse(u.end - u.start),
                std::cmp::Reverse(u.bytes),
            )
        });
        let mut placed: Vec<(&Use<K>, usize)> = Vec::new();
        let mut total = 0;
        for u in order {
            let size = u.bytes.next_multiple_of(ALIGN);
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|(other, _)| other.start <= u.end && u.start <= other.end)
                .map(|(other, at)| (*at, at + other.bytes.next_multiple_of(ALIGN)))
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (begin, end) in taken {
                if at + size <= begin {
                    break;
                }
                at = at.max(end);
            }
            total = total.max(at + size);
            placed.push((u, at));
        }
        Arena {
            places: placed.into_iter().map(|(u, at)| (u.key, at)).collect(),
            bytes: total,
        }
    }

    /// Offset for each row, bytes; `None` for a buffer that was not planned.
    pub fn find(&self, key: K) -> Option<usize> {
        self.places.iter().find(|(k, _)| *k == key).map(|p| p.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn buffers_in_use_together_do_not_overlap(
            spans in prop::collection::vec((0usize..20, 0usize..8, 1usize..200), 1..30)
        ) {
            let uses: Vec<Use<usize>> = spans
                .iter()
                .enumerate()
                .map(|(key, &(start, length, bytes))| Use { key, bytes, start, end: start + length })
                .collect();
            let arena = Arena::plan(&uses);
            for a in &uses {
                let at = arena.find(a.key).unwrap();
                prop_assert!(at + a.bytes <= arena.bytes);
                for b in uses.iter().filter(|b| b.key != a.key) {
                    let other = arena.find(b.key).unwrap();
                    let together = a.start <= b.end && b.start <= a.end;
                    prop_assert!(!together || at + a.bytes <= other || other + b.bytes <= at);
                }
            }
            // No more than if nothing was shared.
            let apart: usize = uses.iter().map(|u| u.bytes.next_multiple_of(ALIGN)).sum();
            prop_assert!(arena.bytes <= apart);
        }
    }

    #[test]
    fn buffers_of_different_times_share_memory() {
        let arena = Arena::plan(&[
            Use {
                key: 'a',
                bytes: 64,
                start: 0,
                end: 1,
            },
            Use {
                key: 'b',
                bytes: 64,
                start: 2,
                end: 3,
            },
            Use {
                key: 'c',
                bytes: 32,
                start: 0,
                end: 3,
            },
        ]);
        assert_eq!(arena.bytes, 96);
        assert_eq!(arena.find('a'), arena.find('b'));
        assert_eq!(arena.find('d'), None);
    }
}
