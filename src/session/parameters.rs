//! Parameters of a simulation: raw numbers of the viewer to a checked method.

use std::time::Duration;

use super::message::{RawParameters, Start};
use super::settings::SessionSettings;
use crate::dynamics::{BFGS_MAX_ATOMS, Method};

const LARGEST_FRAME_INTERVAL_MS: u32 = 60_000;
const LONGEST_LABEL: usize = 100;

/// What is asked for by a START, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    pub temperature: f64,
    pub timestep_fs: f64,
    pub friction: f64,
    pub max_step: f64,
    pub integrator: Integrator,
    pub seed: Option<u64>,
    pub steps_per_frame: u32,
    pub frame_interval: Duration,
    pub record: bool,
    pub record_label: Option<String>,
}

/// Integrators by their numbers in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Integrator {
    Default = 0,
    VelocityVerlet = 1,
    Langevin = 2,
    Bfgs = 3,
    Lbfgs = 4,
    Fire = 5,
}

/// Kinds of simulation of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Md,
    Relax,
}

/// Why a START is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal {
    /// Another calculator than UMA was asked for.
    Calculator(String),
    /// The kind of simulation does not exist.
    UnknownKind(i32),
    /// A parameter is unusable.
    Parameter(String),
}

impl Parameters {
    /// Those of a viewer that has never sent any.
    pub fn new(settings: &SessionSettings) -> Self {
        Parameters {
            temperature: 298.0,
            timestep_fs: 1.0,
            friction: 0.02,
            max_step: 0.2,
            integrator: Integrator::Default,
            seed: None,
            steps_per_frame: 1,
            frame_interval: settings.frame_interval,
            record: settings.can_record && settings.record_by_default,
            record_label: None,
        }
    }

    /// What a START makes of the previous parameters, and the method for `natoms` atoms.
    pub fn after(
        &self,
        start: &Start,
        natoms: usize,
        settings: &SessionSettings,
    ) -> Result<(Parameters, Kind, Method), Refusal> {
        if let Some(raw) = &start.parameters {
            let calculator = raw.calculator.trim();
            if !calculator.is_empty() && !calculator.eq_ignore_ascii_case("uma") {
                return Err(Refusal::Calculator(raw.calculator.clone()));
            }
        }
        let kind = match start.simulation_type {
            0 => Kind::Md,
            1 => Kind::Relax,
            other => return Err(Refusal::UnknownKind(other)),
        };
        let parameters = match &start.parameters {
            Some(raw) => Parameters::from_raw(raw, settings).map_err(Refusal::Parameter)?,
            None => Parameters {
                seed: None, // restarts the random numbers of one START only
                ..self.clone()
            },
        };
        let method = parameters
            .method(kind, natoms)
            .map_err(Refusal::Parameter)?;
        Ok((parameters, kind, method))
    }

    pub fn from_raw(raw: &RawParameters, settings: &SessionSettings) -> Result<Parameters, String> {
        for (name, value) in [
            ("temperature", raw.temperature),
            ("timestep_fs", raw.timestep_fs),
            ("friction", raw.friction),
            ("fmax", raw.fmax),
            ("max_step", raw.max_step),
        ] {
            if !value.is_finite() {
                return Err(format!("{name} = {value} is not finite"));
            }
        }
        let steps_per_frame = raw.steps_per_frame.unwrap_or(1);
        if steps_per_frame == 0 || steps_per_frame > settings.max_steps_per_frame {
            return Err(format!(
                "steps_per_frame = {steps_per_frame}, the limits are 1 and {}",
                settings.max_steps_per_frame
            ));
        }
        let frame_interval = match raw.frame_interval_ms {
            None => settings.frame_interval,
            Some(ms) if ms > LARGEST_FRAME_INTERVAL_MS => {
                return Err(format!(
                    "frame_interval_ms = {ms}, the limit is {LARGEST_FRAME_INTERVAL_MS}"
                ));
            }
            Some(ms) => Duration::from_millis(ms.into()),
        };
        if raw.record == Some(true) && !settings.can_record {
            return Err("this server does not record".into());
        }
        if let Some(label) = &raw.record_label {
            check_label(label)?;
        }
        Ok(Parameters {
            temperature: raw.temperature,
            timestep_fs: raw.timestep_fs,
            friction: raw.friction,
            max_step: raw.max_step,
            integrator: Integrator::from_number(raw.integrator.unwrap_or(0))?,
            seed: raw.seed,
            steps_per_frame,
            frame_interval,
            record: settings.can_record && raw.record.unwrap_or(settings.record_by_default),
            record_label: raw.record_label.clone(),
        })
    }

    fn method(&self, kind: Kind, natoms: usize) -> Result<Method, String> {
        let timestep_fs = self.timestep_fs;
        let max_step_angstrom = self.max_step;
        let method = match (kind, self.integrator) {
            (Kind::Md, Integrator::Default | Integrator::Langevin) => Method::Langevin {
                timestep_fs,
                temperature_kelvin: self.temperature,
                friction: self.friction,
            },
            (Kind::Md, Integrator::VelocityVerlet) => Method::VelocityVerlet { timestep_fs },
            // A Hessian of many atoms is too large to keep and to solve.
            (Kind::Relax, Integrator::Default | Integrator::Bfgs) if natoms <= BFGS_MAX_ATOMS => {
                Method::Bfgs { max_step_angstrom }
            }
            (Kind::Relax, Integrator::Default | Integrator::Bfgs | Integrator::Lbfgs) => {
                Method::Lbfgs { max_step_angstrom }
            }
            (Kind::Relax, Integrator::Fire) => Method::Fire { max_step_angstrom },
            (Kind::Md, other) => {
                return Err(format!(
                    "integrator {} is none of MD: langevin, velocity_verlet",
                    other.name()
                ));
            }
            (Kind::Relax, other) => {
                return Err(format!(
                    "integrator {} is none of RELAX: bfgs, lbfgs, fire",
                    other.name()
                ));
            }
        };
        method.check().map_err(|e| e.to_string())?;
        Ok(method)
    }
}

impl Integrator {
    fn from_number(number: i32) -> Result<Self, String> {
        [
            Integrator::Default,
            Integrator::VelocityVerlet,
            Integrator::Langevin,
            Integrator::Bfgs,
            Integrator::Lbfgs,
            Integrator::Fire,
        ]
        .into_iter()
        .find(|&i| i as i32 == number)
        .ok_or_else(|| format!("unknown integrator {number}, the limits are 0 and 5"))
    }

    fn name(self) -> &'static str {
        match self {
            Integrator::Default => "default",
            Integrator::VelocityVerlet => "velocity_verlet",
            Integrator::Langevin => "langevin",
            Integrator::Bfgs => "bfgs",
            Integrator::Lbfgs => "lbfgs",
            Integrator::Fire => "fire",
        }
    }
}

/// A label becomes a file name, so it must be one and stay in its directory.
fn check_label(label: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if label.is_empty() || label.len() > LONGEST_LABEL {
        return Err(format!(
            "record_label has {} characters, the limits are 1 and {LONGEST_LABEL}",
            label.len()
        ));
    }
    if !label.chars().all(allowed) || label.starts_with(['.', '-']) {
        return Err(
            "record_label may contain letters, digits, '.', '_' and '-', and starts with a letter, \
             a digit or '_'"
                .into(),
        );
    }
    Ok(())
}

/// The string as Python would print it, because that is how clients know the calculator notice.
pub(super) fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut repr = String::from(quote);
    for c in text.chars().take(64) {
        match c {
            '\\' => repr.push_str("\\\\"),
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            c if c == quote => repr.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                repr.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => repr.push(c),
        }
    }
    repr.push(quote);
    repr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_python_quotes_them() {
        for (text, expected) in [
            ("lj", "'lj'"),
            ("", "''"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("a\\b\n\x01", "'a\\\\b\\n\\x01'"),
            ("é", "'é'"),
        ] {
            assert_eq!(python_repr(text), expected);
        }
    }

    #[test]
    fn labels_stay_in_their_directory() {
        for label in ["run-1", "A.b_c", "_x", "0"] {
            assert_eq!(check_label(label), Ok(()), "{label}");
        }
        for label in [
            "",
            "..",
            ".hidden",
            "a/b",
            "-rf",
            "a b",
            "ä",
            &"x".repeat(101),
        ] {
            assert!(check_label(label).is_err(), "{label}");
        }
    }
}
