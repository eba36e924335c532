//! Which rank computes on which device.
//!
//! Every rank says what it sees; the same pure function then gives every rank the same answer. The
//! ranks of a host take the devices of that host in the order of their numbers, so no two ranks
//! ever share one. Where that does not come out, nobody starts, and the reason is a table of
//! ranks, hosts and devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What a rank says about its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Number of the rank.
    pub rank: usize,
    /// Name of its host.
    pub host: String,
    /// Whether the rank computes (the first of several only serves).
    pub computes: bool,
    /// The devices that this process may use, in the order of their indices, by a name that is
    /// the same for all processes of the host: the UUID. (Indices are not: a launcher may show
    /// every rank another device as number 0.)
    pub visible: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Devices where any rank sees one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A device for every rank that computes.
    Devices,
}

/// Where a rank computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it serves.
    None,
    /// On the CPU.
    Cpu,
    /// On the device with this index among those that it sees.
    Device {
        /// Index into [`Seat::visible`].
        index: usize,
        /// Its entry there.
        id: String,
    },
}

/// Ranks and devices that do not fit together; the text is a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mismatch(String);

/// The place of every rank, in the order of `seats`.
///
/// # Errors
/// Devices are wanted (or, with [`Wanted::Auto`], seen by some ranks) and a rank that computes
/// cannot have one of its own.
pub fn assign(seats: &[Seat], wanted: Wanted) -> Result<Vec<Place>, Mismatch> {
    let computing = || seats.iter().filter(|seat| seat.computes);
    let on_devices = match wanted {
        Wanted::Cpu => false,
        Wanted::Devices => true,
        Wanted::Auto => computing().any(|seat| !seat.visible.is_empty()),
    };
    let mut places: Vec<Place> = seats
        .iter()
        .map(|seat| match seat.computes {
            true => Place::Cpu,
            false => Place::None,
        })
        .collect();
    if !on_devices {
        return Ok(places);
    }
    let mut hosts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, seat) in seats.iter().enumerate().filter(|(_, seat)| seat.computes) {
        hosts.entry(&seat.host).or_default().push(at);
    }
    let mut complete = true;
    for ranks in hosts.values_mut() {
        ranks.sort_by_key(|&at| seats[at].rank);
        for (at, index) in match_devices(seats, ranks) {
            let id = seats[at].visible[index].clone();
            places[at] = Place::Device { index, id };
        }
        complete &= ranks.iter().all(|&at| places[at] != Place::Cpu);
    }
    match complete {
        true => Ok(places),
        false => Err(Mismatch(table(seats, &places, &hosts))),
    }
}

/// Gives as many ranks of one host as possible a device of their own: (rank, index).
///
/// Every rank takes the first free device that it sees; where the lists of the ranks differ, an
/// earlier one moves to another of its devices if that frees one (augmenting paths, Kuhn 1955).
fn match_devices(seats: &[Seat], ranks: &[usize]) -> Vec<(usize, usize)> {
    fn place<'a>(
        at: usize,
        seats: &'a [Seat],
        owner: &mut BTreeMap<&'a str, (usize, usize)>,
        tried: &mut BTreeSet<&'a str>,
    ) -> bool {
        let visible = || seats[at].visible.iter().enumerate();
        for (index, id) in visible() {
            if !owner.contains_key(id.as_str()) {
                owner.insert(id, (at, index));
                return true;
            }
        }
        for (index, id) in visible() {
            if tried.insert(id) {
                let (other, _) = owner[id.as_str()];
                if other != at && place(other, seats, owner, tried) {
                    owner.insert(id, (at, index));
                    return true;
                }
            }
        }
        false
    }
    let mut owner = BTreeMap::new();
    for &at in ranks {
        place(at, seats, &mut owner, &mut BTreeSet::new());
    }
    owner.into_values().collect()
}

fn table(seats: &[Seat], places: &[Place], hosts: &BTreeMap<&str, Vec<usize>>) -> String {
    let mut text = String::from(
        "every rank that computes needs a device of its own, and there are not enough:\n",
    );
    for (host, ranks) in hosts {
        let devices: BTreeSet<&String> = ranks.iter().flat_map(|&at| &seats[at].visible).collect();
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "  {host}: {} computing ranks, {} devices",
            ranks.len(),
            devices.len()
        );
    }
    let _ = writeln!(text, "{:>5}  {:20}  {:42}  sees", "rank", "host", "device");
    for (seat, place) in seats.iter().zip(places) {
        let device = match place {
            Place::None => "serves".to_owned(),
            Place::Cpu => "none".to_owned(),
            Place::Device { id, .. } => id.clone(),
        };
        let sees = match seat.visible.is_empty() {
            true => "-".to_owned(),
            false => seat.visible.join(" "),
        };
        let _ = writeln!(
            text,
            "{:>5}  {:20}  {device:42}  {sees}",
            seat.rank, seat.host
        );
    }
    text + "start one computing rank per device (and one that serves), or use --device cpu"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rank 0 serves on the first host; every list is what one rank sees.
    fn seats(hosts: &[(&str, &[&[&str]])]) -> Vec<Seat> {
        let serves = Seat {
            rank: 0,
            host: hosts[0].0.into(),
            computes: false,
            visible: vec![],
        };
        let mut all = vec![serves];
        for (host, ranks) in hosts {
            for visible in *ranks {
                all.push(Seat {
                    rank: all.len(),
                    host: (*host).into(),
                    computes: true,
                    visible: visible.iter().map(|&id| id.to_owned()).collect(),
                });
            }
        }
        all
    }

    fn ids(places: &[Place]) -> Vec<&str> {
        places
            .iter()
            .map(|place| match place {
                Place::None => "serves",
                Place::Cpu => "cpu",
                Place::Device { id, .. } => id,
            })
            .collect()
    }

    #[test]
    fn ranks_of_a_host_take_its_devices_in_order() {
        let all: &[&str] = &["GPU-a", "GPU-b"];
        let others: &[&str] = &["GPU-c", "GPU-d"];
        let seats = seats(&[("n1", &[all, all]), ("n2", &[others, others])]);
        let places = assign(&seats, Wanted::Devices).unwrap();
        assert_eq!(ids(&places), ["serves", "GPU-a", "GPU-b", "GPU-c", "GPU-d"]);
        assert_eq!(
            places[2],
            Place::Device {
                index: 1,
                id: "GPU-b".into()
            }
        );
        assert_eq!(assign(&seats, Wanted::Auto).unwrap(), places);
        let cpu = assign(&seats, Wanted::Cpu).unwrap();
        assert_eq!(ids(&cpu), ["serves", "cpu", "cpu", "cpu", "cpu"]);
    }

    #[test]
    fn devices_bound_by_the_launcher_are_recognised_by_their_names() {
        // Each sees its own as number 0.
        let places = assign(
            &seats(&[("n1", &[&["GPU-b"], &["GPU-a"]])]),
            Wanted::Devices,
        );
        assert_eq!(ids(&places.unwrap()), ["serves", "GPU-b", "GPU-a"]);
        // Lists that overlap: the first has to give way.
        let places = assign(
            &seats(&[("n1", &[&["a", "b"], &["a", "c"], &["a"]])]),
            Wanted::Devices,
        );
        assert_eq!(ids(&places.unwrap()), ["serves", "b", "c", "a"]);
    }

    #[test]
    fn two_ranks_never_get_one_device() {
        let all: &[&str] = &["GPU-a", "GPU-b"];
        for ranks in [&[all, all, all][..], &[&["GPU-a"], &["GPU-a"]]] {
            let error = assign(&seats(&[("n1", ranks)]), Wanted::Devices).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&format!("n1: {} computing ranks", ranks.len())),
                "{text}"
            );
            assert_eq!(text.matches("  none  ").count(), 1, "{text}");
            // One line per rank, the front among them.
            assert_eq!(text.matches("  n1    ").count(), ranks.len() + 1, "{text}");
        }
    }

    #[test]
    fn auto_is_content_with_no_devices_at_all_but_not_with_too_few() {
        let none = seats(&[("n1", &[&[], &[]])]);
        assert_eq!(
            ids(&assign(&none, Wanted::Auto).unwrap()),
            ["serves", "cpu", "cpu"]
        );
        assert!(assign(&none, Wanted::Devices).is_err());
        let some = seats(&[("n1", &[&["GPU-a"]]), ("n2", &[&[]])]);
        let text = assign(&some, Wanted::Auto).unwrap_err().to_string();
        assert!(text.contains("n2: 1 computing ranks, 0 devices"), "{text}");
    }

    #[test]
    fn one_process_computes_and_more_devices_than_ranks_are_fine() {
        let alone = [Seat {
            rank: 0,
            host: "n1".into(),
            computes: true,
            visible: vec!["GPU-a".into(), "GPU-b".into()],
        }];
        assert_eq!(ids(&assign(&alone, Wanted::Auto).unwrap()), ["GPU-a"]);
    }

    proptest! {
        /// Whatever the ranks see: no device twice on a host, and an error only if there is no
        /// assignment at all (Hall's condition, checked by counting over all subsets).
        #[test]
        fn an_assignment_is_found_exactly_when_there_is_one(
            sees in proptest::collection::vec(proptest::collection::vec(0u8..5, 0..4), 1..6)
        ) {
            let seats: Vec<Seat> = sees
                .iter()
                .enumerate()
                .map(|(rank, devices)| Seat {
                    rank,
                    host: "n1".into(),
                    computes: true,
                    visible: devices.iter().map(|d| format!("GPU-{d}")).collect(),
                })
                .collect();
            let possible = (1u32..1 << seats.len()).all(|subset| {
                let chosen: Vec<&Seat> = seats
                    .iter()
                    .filter(|seat| subset & (1 << seat.rank) != 0)
                    .collect();
                let devices: BTreeSet<&String> =
                    chosen.iter().flat_map(|seat| &seat.visible).collect();
                devices.len() >= chosen.len()
            });
            match assign(&seats, Wanted::Devices) {
                Ok(places) => {
                    let ids: BTreeSet<&str> = ids(&places).into_iter().collect();
                    prop_assert_eq!(ids.len(), seats.len());
                    for (seat, place) in seats.iter().zip(&places) {
                        let Place::Device { index, id } = place else {
                            return Err(TestCaseError::fail("no device"));
                        };
                        prop_assert_eq!(&seat.visible[*index], id);
                    }
                }
                Err(_) => prop_assert!(!possible),
            }
        }
    }
}
