//! The reader of extended XYZ: what it accepts is whole, and reads the same after being written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use umaserve::structure_file::{Extra, read_frames, write_frame};

const MAX_ATOMS: usize = 1000;

fuzz_target!(|data: &[u8]| {
    for frame in read_frames(data, "input", MAX_ATOMS) {
        let Ok(frame) = frame else { break };
        let natoms = frame.system.numbers.len();
        assert!(natoms <= MAX_ATOMS);
        assert_eq!(frame.system.positions.len(), natoms);
        let evaluation = frame.evaluation();
        let extra = Extra {
            info: &frame.info,
            arrays: &frame.arrays,
        };
        let mut text = Vec::new();
        if write_frame(&mut text, &frame.system, evaluation.as_ref(), extra).is_err() {
            continue;
        }
        let again = read_frames(&text[..], "written", MAX_ATOMS)
            .next()
            .expect("a frame was written")
            .expect("what was written can be read");
        // As text: not-a-number is what it was.
        assert_eq!(
            format!("{:?}", again.system),
            format!("{:?}", frame.system),
            "{}",
            String::from_utf8_lossy(&text)
        );
    }
});
