//! A pickle machine for protocol 2 that builds data and runs nothing.
//!
//! Written from the opcode definitions in the documentation of Python's `pickletools`. Classes and
//! functions named by the program stay names: `REDUCE` and `NEWOBJ` record what would have been
//! called, so an unknown class is an opaque object and never code. The result is a graph in one
//! arena, addressed by index, so reference cycles (the OmegaConf objects of a checkpoint carry the
//! whole training configuration, with parent links) cost nothing, and neither building nor
//! dropping it recurses.
//!
//! Bounds: every opcode is at least one byte and takes constant time (plus the length of its own
//! argument), so a program of `n` bytes ends after at most `n` steps; strings stay ranges of the
//! input; what the arena, the stack and the memo hold is at most `MEMORY_FACTOR` bytes per byte
//! of input, beyond which the program is refused.

mod machine;

use std::cell::Cell;

use self::machine::Machine;
use super::archive::short;

/// Longest accepted `data.pkl`, bytes. Those of UMA checkpoints have 0.1 to 2 MB.
pub const MAX_PROGRAM_BYTES: usize = 32 << 20;
/// Keys compared and elements visited while a configuration is read; a real one takes about
/// 10,000.
const MAX_READ_STEPS: usize = 5_000_000;
/// Why a pickle program is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data.pkl, byte {at}: {what}")]
pub struct PickleError {
    /// Offset of the offending opcode.
    pub at: usize,
    /// What is wrong with it.
    pub what: String,
}

/// A range of the program's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

/// One value: a scalar, or the index of a node of the graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits in 64 bits.
    Int(i64),
    /// An integer that does not; its value is not kept.
    HugeInt,
    /// A float.
    Float(f64),
    /// A string (checked UTF-8).
    Text(Span),
    /// A byte string.
    Bytes(Span),
    /// A class or function, by name only.
    Global(u32),
    /// A persistent object: index of the tuple that names it.
    Persistent(u32),
    /// A container or an object.
    Node(u32),
}

/// A container or an object of the graph.
#[derive(Debug)]
pub enum Node {
    /// A tuple.
    Tuple(Box<[Value]>),
    /// A list.
    List(Vec<Value>),
    /// A dict, as the sequence of its assignments.
    Dict(Vec<(Value, Value)>),
    /// What calling `class` with `args` and then `BUILD` with `state` would have made.
    Object {
        /// The class or function.
        class: Value,
        /// Its arguments.
        args: Value,
        /// State given by `BUILD`; `None` before.
        state: Value,
    },
}

/// A finished graph.
#[derive(Debug)]
pub struct Pickle<'d> {
    data: &'d [u8],
    nodes: Vec<Node>,
    globals: Vec<(Span, Span)>,
    /// Steps that readers of the graph may still take.
    work_left: Cell<usize>,
    /// The value that `STOP` returned.
    pub root: Value,
}

impl<'d> Pickle<'d> {
    /// Runs a program.
    pub fn load(data: &'d [u8]) -> Result<Self, PickleError> {
        if data.len() > MAX_PROGRAM_BYTES {
            return Err(PickleError {
                at: 0,
                what: format!(
                    "the program has {} bytes, more than the limit of {MAX_PROGRAM_BYTES}",
                    data.len()
                ),
            });
        }
        Machine::new(data).run()
    }

    /// Takes `steps` from the work allowed on this graph: searches through shared, cyclic or
    /// self-referring parts must end. Fails when nothing is left.
    pub fn spend(&self, steps: usize) -> Result<(), String> {
        match self.work_left.get().checked_sub(steps) {
            Some(left) => {
                self.work_left.set(left);
                Ok(())
            }
            None => Err("reading the configuration takes too many steps".to_owned()),
        }
    }

    /// The string of a [`Value::Text`].
    pub fn text(&self, value: Value) -> Option<&'d str> {
        match value {
            Value::Text(span) => std::str::from_utf8(slice(self.data, span)).ok(),
            _ => None,
        }
    }

    /// Module and name of a [`Value::Global`].
    pub fn global(&self, value: Value) -> Option<(&'d str, &'d str)> {
        let Value::Global(index) = value else {
            return None;
        };
        let (module, name) = *self.globals.get(index as usize)?;
        Some((
            std::str::from_utf8(slice(self.data, module)).ok()?,
            std::str::from_utf8(slice(self.data, name)).ok()?,
        ))
    }

    /// The node of a [`Value::Node`].
    pub fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(index) => self.nodes.get(index as usize),
            _ => None,
        }
    }

    /// The pairs of a dict.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.node(value)? {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The elements of a list or a tuple.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::List(items) => Some(items),
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub fn tuple(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The tuple that names a persistent object.
    pub fn persistent(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Persistent(index) => self.tuple(Value::Node(index)),
            _ => None,
        }
    }

    /// Class name (module, name), arguments and state of an object.
    pub fn object(&self, value: Value) -> Option<((&'d str, &'d str), Value, Value)> {
        match self.node(value)? {
            Node::Object { class, args, state } => Some((self.global(*class)?, *args, *state)),
            _ => None,
        }
    }

    /// What a value is, for error messages.
    pub fn describe(&self, value: Value) -> String {
        match value {
            Value::None => "None".to_owned(),
            Value::Bool(b) => if b { "True" } else { "False" }.to_owned(),
            Value::Int(i) => i.to_string(),
            Value::HugeInt => "an integer beyond 64 bits".to_owned(),
            Value::Float(f) => f.to_string(),
            Value::Text(_) => format!("{:?}", short(self.text(value).unwrap_or_default())),
            Value::Bytes(_) => "a byte string".to_owned(),
            Value::Global(_) => match self.global(value) {
                Some((module, name)) => short(&format!("{module}.{name}")),
                None => "a class".to_owned(),
            },
            Value::Persistent(_) => "a tensor storage".to_owned(),
            Value::Node(_) => match self.node(value) {
                Some(Node::Tuple(_)) => "a tuple".to_owned(),
                Some(Node::List(_)) => "a list".to_owned(),
                Some(Node::Dict(_)) => "a dict".to_owned(),
                Some(Node::Object { class, .. }) => match self.global(*class) {
                    Some((module, name)) => short(&format!("an object of {module}.{name}")),
                    None => "an object".to_owned(),
                },
                None => "nothing".to_owned(),
            },
        }
    }
}

fn slice(data: &[u8], span: Span) -> &[u8] {
    &data[span.start as usize..span.start as usize + span.len as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(program: &[u8]) -> Result<Pickle<'_>, PickleError> {
        Pickle::load(program)
    }

    #[test]
    fn integers_of_every_width_keep_their_sign() {
        let pickle = load(
            b"\x80\x02(K\xffM\xff\xffJ\xff\xff\xff\xff\x8a\x00\x8a\x01\x80\x8a\x09\
            \x00\x00\x00\x00\x00\x00\x00\x00\x01\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ft.",
        )
        .expect("a valid program");
        assert_eq!(
            pickle.tuple(pickle.root).expect("a tuple"),
            [
                Value::Int(255),
                Value::Int(65535),
                Value::Int(-1),
                Value::Int(0),
                Value::Int(-128),
                Value::HugeInt,
                Value::Int(i64::MAX),
            ]
        );
    }

    #[test]
    fn a_list_may_contain_itself() {
        let pickle = load(b"\x80\x02]q\x00h\x00a.").expect("a valid program");
        assert_eq!(pickle.sequence(pickle.root), Some(&[pickle.root][..]));
    }

    #[test]
    fn calls_are_recorded_and_never_made() {
        let pickle =
            load(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").expect("a valid program");
        let (name, args, state) = pickle.object(pickle.root).expect("an opaque object");
        assert_eq!(name, ("os", "system"));
        assert_eq!(
            pickle.text(pickle.tuple(args).expect("a tuple")[0]),
            Some("ls")
        );
        assert_eq!(state, Value::None);
    }

    #[test]
    fn a_frame_cannot_reach_below_its_mark() {
        assert!(load(b"\x80\x02K\x01(0.").is_err());
        assert!(load(b"\x80\x02K\x01K\x02(\x86.").is_err());
        assert!(load(b"\x80\x02](a.").is_err());
    }

    #[test]
    fn newer_protocols_are_refused_by_name() {
        let error = load(b"\x80\x04N.").expect_err("protocol 4");
        assert!(error.what.contains("protocol 4"), "{error}");
    }
}
