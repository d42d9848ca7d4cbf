//! Spans of time as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time, written as a number and a unit: `90s`, `15m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(Duration);

const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];

impl Age {
    /// Returns a number of days.
    pub const fn days(number: u32) -> Age {
        Age(Duration::from_secs(number as u64 * 86_400))
    }

    /// Returns it as a duration.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Age, String> {
        let invalid = || String::from("must be a number and a unit, as in 90s, 15m, 12h or 7d");
        let unit = text.chars().next_back().ok_or_else(invalid)?;
        let (_, seconds) = UNITS.iter().find(|(c, _)| *c == unit).ok_or_else(invalid)?;
        let digits = text.get(..text.len() - 1).unwrap_or_default();
        let number: u32 = digits.parse().map_err(|_| invalid())?;
        if number == 0 {
            return Err(invalid());
        }
        Ok(Age(Duration::from_secs(u64::from(number) * seconds)))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let fits = |unit: &&(char, u64)| seconds.is_multiple_of(unit.1);
        let (unit, length) = UNITS.iter().rev().find(fits).unwrap_or(&('s', 1));
        write!(f, "{}{unit}", seconds / length)
    }
}

impl Serialize for Age {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Age, D::Error> {
        String::deserialize(input)?
            .parse()
            .map_err(|e| de::Error::custom(format!("invalid time: {e}")))
    }
}

/// Returns a span of seconds as people say it.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (count, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_span_is_a_number_and_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800)] {
            let age: Age = text.parse().unwrap();
            assert_eq!(age.duration().as_secs(), seconds);
            assert_eq!(age.to_string(), text);
        }
        for text in [
            "",
            "m",
            "0m",
            "-1m",
            "15",
            "15 m",
            "1.5h",
            "7w",
            "9999999999d",
            "7ß",
        ] {
            text.parse::<Age>().unwrap_err();
        }
    }
}
