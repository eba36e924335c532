//! The comment line: `key=value` pairs with ASE's quoting.

use super::Value;

/// The pairs of a comment line in order; of a key given twice, the last value at the first place.
/// A key without a value is true. Nothing is an error: what does not look like pairs becomes keys,
/// as in ASE.
pub(super) fn parse(line: &str) -> Vec<(String, Value)> {
    let mut pairs: Vec<(String, Value)> = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (key, after) = token(rest, true);
        let after_spaces = after.trim_start();
        let value;
        if let Some(after) = after_spaces.strip_prefix('=') {
            let spaces = after.starts_with(char::is_whitespace);
            let (text, after_value) = token(after.trim_start(), false);
            // ASE writes an empty text as `a= b=1`; this is not a key `a` with the value `b=1`.
            let next_pair = spaces && token(after.trim_start(), true).1.starts_with('=');
            (value, rest) = match next_pair {
                true => (Value::Text(String::new()), after.trim_start()),
                false => (typed(&text), after_value.trim_start()),
            };
        } else {
            (value, rest) = (Value::Bool(true), after_spaces);
        }
        if key.is_empty() {
            continue;
        }
        match pairs.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => pairs.push((key, value)),
        }
    }
    pairs
}

/// Takes a token up to white space (a key also ends at `=`) off the front of a text. Quotes and
/// brackets protect white space and are removed, a backslash protects one character.
fn token(text: &str, key: bool) -> (String, &str) {
    let mut token = String::new();
    let mut closing = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if escaped {
            token.push(c);
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if let Some(end) = closing {
            match c == end {
                true => closing = None,
                false => token.push(c),
            }
        } else if let Some(end) = closing_of(c) {
            closing = Some(end);
        } else if c.is_whitespace() || (key && c == '=') {
            return (token, &text[at..]);
        } else {
            token.push(c);
        }
    }
    (token, "")
}

fn closing_of(c: char) -> Option<char> {
    match c {
        '"' | '\'' => Some(c),
        '{' => Some('}'),
        '[' => Some(']'),
        _ => None,
    }
}

/// The value of a text: whole numbers, numbers, truth values (one or several, separated by white
/// space or commas), or else the text.
pub(super) fn typed(text: &str) -> Value {
    let parts = || {
        text.split(|c: char| c.is_whitespace() || c == ',')
            .filter(|p| !p.is_empty())
    };
    fn all<'a, T>(
        parts: impl Iterator<Item = &'a str>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        parts.map(parse).collect()
    }
    if parts().next().is_none() {
        return Value::Text(text.to_owned());
    }
    if let Some(list) = all(parts(), |p| p.parse().ok()) {
        return match list[..] {
            [one] => Value::Int(one),
            _ => Value::Ints(list),
        };
    }
    if let Some(list) = all(parts(), |p| p.parse().ok()) {
        return match list[..] {
            [one] => Value::Real(one),
            _ => Value::Reals(list),
        };
    }
    if let Some(list) = all(parts(), truth) {
        return match list[..] {
            [one] => Value::Bool(one),
            _ => Value::Bools(list),
        };
    }
    // Texts that would not survive as they are, are written as JSON.
    if let Some(json) = text.strip_prefix("_JSON ")
        && let Ok(text) = serde_json::from_str::<String>(json)
    {
        return Value::Text(text);
    }
    Value::Text(text.to_owned())
}

pub(super) fn truth(text: &str) -> Option<bool> {
    match text {
        "T" | "true" | "True" | "TRUE" => Some(true),
        "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// A pair as text that [`parse`] and ASE read back.
pub(super) fn format(key: &str, value: &Value) -> String {
    fn join<T>(list: &[T], text: impl Fn(&T) -> String) -> String {
        list.iter().map(text).collect::<Vec<_>>().join(" ")
    }
    let bit = |b: &bool| if *b { "T" } else { "F" }.to_owned();
    // Debug formatting of f64 is the shortest that reads back exactly, with an exponent where that
    // is shorter.
    let real = |x: &f64| format!("{x:?}");
    let value = match value {
        Value::Bool(b) => bit(b),
        Value::Int(n) => n.to_string(),
        Value::Real(x) => real(x),
        Value::Bools(list) => join(list, bit),
        Value::Ints(list) => join(list, i64::to_string),
        Value::Reals(list) => join(list, real),
        Value::Text(text) => {
            // As JSON where the text would come back as something else or break the line.
            let survives = typed(text) == Value::Text(text.clone())
                && !text.is_empty()
                && text.trim() == text
                && !text.contains(char::is_control);
            match survives {
                true => text.clone(),
                false => format!("_JSON {}", json(text)),
            }
        }
    };
    format!("{}={}", quoted(key), quoted(&value))
}

/// The text as JSON without any control character: JSON itself lets U+007F to U+009F stand, which
/// would break the line or be lost.
fn json(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    for c in serde_json::Value::from(text).to_string().chars() {
        match c.is_control() {
            true => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => json.push(c),
        }
    }
    json
}

/// The text in quotes where white space or special characters need them.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-+.:/%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Value {
        Value::Text(t.to_owned())
    }

    #[test]
    fn the_quoting_of_ase_is_understood() {
        let line = r#"charge=-1 Lattice="4 0 0 0 5 0 0 0 6.5" name="a \"quoted\" name" flag
            note='it = works' x = 2.5 pbc="T T F" empty= e=1 v=[1,2,3] b={1.5 2} j="_JSON {\"a\": 1}" last="#;
        let line = line.replace('\n', " ");
        let pairs = parse(&line);
        let expected = [
            ("charge", Value::Int(-1)),
            (
                "Lattice",
                Value::Reals(vec![4.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 6.5]),
            ),
            ("name", text("a \"quoted\" name")),
            ("flag", Value::Bool(true)),
            ("note", text("it = works")),
            ("x", Value::Real(2.5)),
            ("pbc", Value::Bools(vec![true, true, false])),
            ("empty", text("")),
            ("e", Value::Int(1)),
            ("v", Value::Ints(vec![1, 2, 3])),
            ("b", Value::Reals(vec![1.5, 2.0])),
            ("j", text("_JSON {\"a\": 1}")),
            ("last", text("")),
        ];
        assert_eq!(pairs.len(), expected.len(), "{pairs:?}");
        for ((key, value), (expected_key, expected_value)) in pairs.iter().zip(expected) {
            assert_eq!((key.as_str(), value), (expected_key, &expected_value));
        }
        assert_eq!(parse("a=1 b=2 a=3").len(), 2);
        assert_eq!(parse("= =5 ="), []);
        assert_eq!(parse("  "), []);
    }

    #[test]
    fn values_survive_writing_and_reading() {
        for value in [
            Value::Bool(false),
            Value::Int(-7),
            Value::Real(1.0 / 3.0),
            Value::Real(1e300),
            Value::Real(-7.0),
            Value::Bools(vec![true, false]),
            Value::Ints(vec![1, -2]),
            Value::Reals(vec![0.1, 1e-17]),
            text("omol"),
            text("two words"),
            text("a \"b\" \\ c = [d] {e} 'f'"),
            text("12"),
            text("T"),
            text(""),
            text(" "),
            text("two\nlines\t"),
            text("a\u{7f}b\u{85}c\u{9f}"),
            text("_JSON {\"a\": [1]}"),
        ] {
            for key in ["key", "a key", "k=\"x\""] {
                let line = format!("{} z=1", format(key, &value));
                let expected = [
                    (key.to_owned(), value.clone()),
                    ("z".to_owned(), Value::Int(1)),
                ];
                assert_eq!(parse(&line), expected, "{line}");
                assert!(!line.contains(char::is_control), "{line}");
            }
        }
    }
}
