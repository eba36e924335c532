//! The reader of official checkpoints: real values, hostile files.

use umaserve::potential::uma::Checkpoint;
use umaserve::potential::uma::describe::describe;

fn nano(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/nano-{name}.pt"))
}

#[test]
fn nano_files_open() {
    for name in ["1p1", "1p2", "m", "esen"] {
        let checkpoint = Checkpoint::open(nano(name)).expect(name);
        println!("{}", describe(&checkpoint));
        println!("{:#?}", checkpoint.config.head);
    }
}
