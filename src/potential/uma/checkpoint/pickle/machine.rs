//! The stack machine that runs a pickle program into a [`Pickle`].

use std::cell::Cell;

use super::{MAX_READ_STEPS, Node, Pickle, PickleError, Span, Value, slice};

/// Bytes of arena, stack and memo allowed per byte of program; real checkpoints need about 8.
const MEMORY_FACTOR: usize = 24;
/// Bytes allowed on top, for very short programs.
const MEMORY_FLOOR: usize = 1 << 16;

const NODE_BYTES: usize = size_of::<Node>();
const VALUE_BYTES: usize = size_of::<Value>();

/// The running machine.
pub(super) struct Machine<'d> {
    data: &'d [u8],
    /// Next byte to read.
    next: usize,
    /// Offset of the opcode being run.
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at every open `MARK`.
    marks: Vec<u32>,
    memo: Vec<Value>,
    nodes: Vec<Node>,
    globals: Vec<(Span, Span)>,
    /// Values held by containers.
    slots: usize,
}

type Step<T> = Result<T, PickleError>;

impl<'d> Machine<'d> {
    pub(super) fn new(data: &'d [u8]) -> Self {
        Self {
            data,
            next: 0,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            nodes: Vec::new(),
            globals: Vec::new(),
            slots: 0,
        }
    }

    fn fail<T>(&self, what: impl Into<String>) -> Step<T> {
        Err(PickleError {
            at: self.at,
            what: what.into(),
        })
    }

    fn take(&mut self, len: usize) -> Step<Span> {
        if len > self.data.len() - self.next {
            return self.fail(format!(
                "an argument of {len} bytes ends beyond the end of the program"
            ));
        }
        let span = Span {
            start: self.next as u32,
            len: len as u32,
        };
        self.next += len;
        Ok(span)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let span = self.take(N)?;
        let mut out = [0; N];
        out.copy_from_slice(slice(self.data, span));
        Ok(out)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn length4(&mut self) -> Step<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A line ended by a newline (the arguments of `GLOBAL`).
    fn line(&mut self) -> Step<Span> {
        // A name of a class is short; without a limit, many GLOBALs without a newline would
        // each search the rest of the program.
        const LIMIT: usize = 1024;
        let rest = &self.data[self.next..];
        let Some(len) = rest.iter().take(LIMIT).position(|&b| b == b'\n') else {
            return self.fail("a name without an end of line");
        };
        let span = self.take(len)?;
        self.next += 1;
        if std::str::from_utf8(slice(self.data, span)).is_err() {
            return self.fail("a name that is not UTF-8");
        }
        Ok(span)
    }

    fn utf8(&mut self, len: usize) -> Step<Value> {
        let span = self.take(len)?;
        if std::str::from_utf8(slice(self.data, span)).is_err() {
            return self.fail("a string that is not UTF-8");
        }
        Ok(Value::Text(span))
    }

    fn integer(&mut self, len: usize) -> Step<Value> {
        let span = self.take(len)?;
        let bytes = slice(self.data, span);
        if len > 8 {
            return Ok(Value::HugeInt);
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    /// Height of the stack below which the current frame must not reach.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&m| m as usize)
    }

    fn pop(&mut self) -> Step<Value> {
        if self.stack.len() <= self.floor() {
            return self.fail("the stack is empty");
        }
        match self.stack.pop() {
            Some(value) => Ok(value),
            None => self.fail("the stack is empty"),
        }
    }

    fn top(&self) -> Step<Value> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.floor() => Ok(value),
            _ => self.fail("the stack is empty"),
        }
    }

    fn pop_mark(&mut self) -> Step<usize> {
        match self.marks.pop() {
            Some(mark) => Ok(mark as usize),
            None => self.fail("no MARK is open"),
        }
    }

    fn push_node(&mut self, node: Node) {
        self.slots += match &node {
            Node::Tuple(items) => items.len(),
            _ => 0,
        };
        let index = self.nodes.len() as u32;
        self.nodes.push(node);
        self.stack.push(Value::Node(index));
    }

    fn push_tuple_from(&mut self, start: usize) {
        let items: Box<[Value]> = self.stack[start..].into();
        self.stack.truncate(start);
        self.push_node(Node::Tuple(items));
    }

    fn push_tuple_of(&mut self, len: usize) -> Step<()> {
        if self.stack.len() < self.floor() + len {
            return self.fail("the stack is empty");
        }
        self.push_tuple_from(self.stack.len() - len);
        Ok(())
    }

    fn memo_put(&mut self, index: usize) -> Step<()> {
        let value = self.top()?;
        // Picklers number the memo in order; a gap would only serve to claim memory.
        if index < self.memo.len() {
            self.memo[index] = value;
        } else if index == self.memo.len() {
            self.memo.push(value);
        } else {
            return self.fail(format!("memo entry {index} is out of order"));
        }
        Ok(())
    }

    fn memo_get(&mut self, index: usize) -> Step<()> {
        match self.memo.get(index) {
            Some(&value) => {
                self.stack.push(value);
                Ok(())
            }
            None => self.fail(format!("memo entry {index} does not exist")),
        }
    }

    /// Appends the values above `start` to the list below them.
    fn append_from(&mut self, start: usize) -> Step<()> {
        let Some(Value::Node(target)) = start.checked_sub(1).map(|i| self.stack[i]) else {
            return self.fail("appending to something that is not a list");
        };
        let values = &self.stack[start..];
        match &mut self.nodes[target as usize] {
            Node::List(items) => {
                self.slots += values.len();
                items.extend_from_slice(values);
            }
            // An opaque object keeps no elements.
            Node::Object { .. } => {}
            _ => return self.fail("appending to something that is not a list"),
        }
        self.stack.truncate(start);
        Ok(())
    }

    /// Assigns the key-value pairs above `start` to the dict below them.
    fn set_items_from(&mut self, start: usize) -> Step<()> {
        let Some(Value::Node(target)) = start.checked_sub(1).map(|i| self.stack[i]) else {
            return self.fail("assigning items to something that is not a dict");
        };
        let values = &self.stack[start..];
        if !values.len().is_multiple_of(2) {
            return self.fail("a key without a value");
        }
        match &mut self.nodes[target as usize] {
            Node::Dict(pairs) => {
                self.slots += values.len();
                pairs.extend(values.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            Node::Object { .. } => {}
            _ => return self.fail("assigning items to something that is not a dict"),
        }
        self.stack.truncate(start);
        Ok(())
    }

    /// `REDUCE` and `NEWOBJ`: containers of the standard library are made, all else recorded.
    fn make(&mut self) -> Step<()> {
        let args = self.pop()?;
        let class = self.pop()?;
        let empty_args = match args {
            Value::Node(index) => match &self.nodes[index as usize] {
                Node::Tuple(items) => items.is_empty(),
                _ => return self.fail("the arguments of a call are not a tuple"),
            },
            _ => return self.fail("the arguments of a call are not a tuple"),
        };
        let (module, name) = match class {
            Value::Global(index) => {
                let (module, name) = self.globals[index as usize];
                (slice(self.data, module), slice(self.data, name))
            }
            _ => return self.fail("a call of something that is not a named class"),
        };
        let builtin = matches!(module, b"__builtin__" | b"builtins");
        let node = match (module, name) {
            (b"collections", b"OrderedDict") if empty_args => Node::Dict(Vec::new()),
            // The argument is the factory of missing values, which decoding never asks for.
            (b"collections", b"defaultdict") => Node::Dict(Vec::new()),
            (_, b"dict") if builtin && empty_args => Node::Dict(Vec::new()),
            (_, b"list") if builtin && empty_args => Node::List(Vec::new()),
            _ => Node::Object {
                class,
                args,
                state: Value::None,
            },
        };
        self.push_node(node);
        Ok(())
    }

    fn build(&mut self) -> Step<()> {
        let new = self.pop()?;
        let Value::Node(target) = self.top()? else {
            return self.fail("giving a state to something that is not an object");
        };
        match &mut self.nodes[target as usize] {
            Node::Object { state, .. } => *state = new,
            // Attributes of an OrderedDict (torch keeps version numbers there).
            Node::Dict(_) | Node::List(_) => {}
            Node::Tuple(_) => {
                return self.fail("giving a state to something that is not an object");
            }
        }
        Ok(())
    }

    fn check_memory(&self) -> Step<()> {
        let used = self.nodes.len() * NODE_BYTES
            + (self.stack.len() + self.memo.len() + self.slots + self.globals.len()) * VALUE_BYTES
            + self.marks.len() * size_of::<u32>();
        if used > self.data.len() * MEMORY_FACTOR + MEMORY_FLOOR {
            return self.fail(format!(
                "the program builds more than {MEMORY_FACTOR} times its own size"
            ));
        }
        Ok(())
    }

    pub(super) fn run(mut self) -> Step<Pickle<'d>> {
        loop {
            self.at = self.next;
            let Some(&opcode) = self.data.get(self.next) else {
                return self.fail("the program ends without STOP");
            };
            self.next += 1;
            if opcode == b'.' {
                break;
            }
            self.step(opcode)?;
            self.check_memory()?;
        }
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return self.fail("the program leaves values on the stack");
        }
        Ok(Pickle {
            data: self.data,
            nodes: self.nodes,
            globals: self.globals,
            work_left: Cell::new(MAX_READ_STEPS),
            root,
        })
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            // PROTO
            0x80 => match self.byte()? {
                0..=2 => {}
                protocol => {
                    return self.fail(format!(
                        "pickle protocol {protocol}; torch.save writes protocol 2"
                    ));
                }
            },
            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len() as u32),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                let start = self.pop_mark()?;
                self.stack.truncate(start);
            }
            b'2' => {
                let value = self.top()?;
                self.stack.push(value);
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let len = self.byte()?;
                let value = self.integer(len.into())?;
                self.stack.push(value);
            }
            0x8b => {
                let len = self.length4()?;
                let value = self.integer(len)?;
                self.stack.push(value);
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            // BINUNICODE, BINSTRING, SHORT_BINSTRING
            b'X' => {
                let len = self.length4()?;
                let value = self.utf8(len)?;
                self.stack.push(value);
            }
            b'T' => {
                let len = self.length4()?;
                let span = self.take(len)?;
                self.stack.push(Value::Bytes(span));
            }
            b'U' => {
                let len = self.byte()?;
                let span = self.take(len.into())?;
                self.stack.push(Value::Bytes(span));
            }
            // EMPTY_LIST, APPEND, APPENDS, LIST
            b']' => self.push_node(Node::List(Vec::new())),
            b'a' => {
                if self.stack.len() < self.floor() + 2 {
                    return self.fail("the stack is empty");
                }
                self.append_from(self.stack.len() - 1)?;
            }
            b'e' => {
                let start = self.pop_mark()?;
                self.append_from(start)?;
            }
            b'l' => {
                let start = self.pop_mark()?;
                let items = self.stack.split_off(start);
                self.slots += items.len();
                self.push_node(Node::List(items));
            }
            // EMPTY_DICT, SETITEM, SETITEMS, DICT
            b'}' => self.push_node(Node::Dict(Vec::new())),
            b's' => {
                if self.stack.len() < self.floor() + 3 {
                    return self.fail("the stack is empty");
                }
                self.set_items_from(self.stack.len() - 2)?;
            }
            b'u' => {
                let start = self.pop_mark()?;
                self.set_items_from(start)?;
            }
            b'd' => {
                let start = self.pop_mark()?;
                if !(self.stack.len() - start).is_multiple_of(2) {
                    return self.fail("a key without a value");
                }
                let pairs: Vec<_> = self.stack[start..]
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect();
                self.slots += 2 * pairs.len();
                self.stack.truncate(start);
                self.push_node(Node::Dict(pairs));
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push_node(Node::Tuple(Box::new([]))),
            0x85 => self.push_tuple_of(1)?,
            0x86 => self.push_tuple_of(2)?,
            0x87 => self.push_tuple_of(3)?,
            b't' => {
                let start = self.pop_mark()?;
                self.push_tuple_from(start);
            }
            // BINGET, LONG_BINGET, BINPUT, LONG_BINPUT
            b'h' => {
                let index = self.byte()?;
                self.memo_get(index.into())?;
            }
            b'j' => {
                let index = self.length4()?;
                self.memo_get(index)?;
            }
            b'q' => {
                let index = self.byte()?;
                self.memo_put(index.into())?;
            }
            b'r' => {
                let index = self.length4()?;
                self.memo_put(index)?;
            }
            // GLOBAL, REDUCE, NEWOBJ, BUILD, BINPERSID
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let index = self.globals.len() as u32;
                self.globals.push((module, name));
                self.stack.push(Value::Global(index));
            }
            b'R' | 0x81 => self.make()?,
            b'b' => self.build()?,
            b'Q' => match self.pop()? {
                Value::Node(index) if matches!(self.nodes[index as usize], Node::Tuple(_)) => {
                    self.stack.push(Value::Persistent(index));
                }
                _ => return self.fail("a persistent object that is not named by a tuple"),
            },
            _ => {
                return self.fail(format!(
                    "opcode 0x{opcode:02x}, which no protocol 2 checkpoint has"
                ));
            }
        }
        Ok(())
    }
}
