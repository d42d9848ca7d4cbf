//! Formats numbers, sizes, times, summaries of changes and tables.

use super::{Output, Tone};
use crate::sys::clock;
use crate::sys::text::printable;
use crate::union::Summary;

/// Formats a number of bytes with three significant digits and binary units.
pub(in crate::cli) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!(
        "{value:.digits$} {}",
        UNITS.get(unit).copied().unwrap_or_default()
    )
}

/// Formats a count with its noun in the singular or plural.
pub(in crate::cli) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Formats the number of objects in a tree, which includes its root and all other directories.
pub(in crate::cli) fn objects(number: u64) -> String {
    match number {
        1 => "1 directory".to_owned(),
        number => format!("{number} files and directories"),
    }
}

/// Summarizes changes. Omits kinds without changes.
pub(in crate::cli) fn changes(summary: &Summary) -> String {
    let words: Vec<String> = [
        (summary.added, "added"),
        (summary.modified, "modified"),
        (summary.touched, "touched"),
        (summary.removed, "removed"),
        (summary.renamed, "renamed"),
    ]
    .into_iter()
    .filter(|(tally, _)| tally.entries > 0)
    .map(|(tally, word)| format!("{} {word}", tally.entries))
    .collect();
    match words.is_empty() {
        true => String::from("nothing"),
        false => words.join(", "),
    }
}

/// A kind of change with its number and size, as a row of a table.
pub(in crate::cli) struct SummaryRow {
    word: &'static str,
    tone: Tone,
    rest: String,
}

impl SummaryRow {
    /// Returns the row as a line.
    pub(in crate::cli) fn colored(&self, output: &Output) -> String {
        let word = output.tone(&format!("{:9}", self.word), self.tone);
        format!("{word} {}", self.rest)
    }
}

/// Returns numbers and sizes of changes. Omits kinds without changes.
pub(in crate::cli) fn summary(changes: &Summary) -> Vec<SummaryRow> {
    let rows = [
        ("added", changes.added, Tone::Good, ""),
        ("modified", changes.modified, Tone::Notice, ""),
        (
            "touched",
            changes.touched,
            Tone::Dim,
            "  only times changed",
        ),
        ("removed", changes.removed, Tone::Bad, ""),
        ("renamed", changes.renamed, Tone::Notice, ""),
    ];
    let rows = rows
        .into_iter()
        .filter(|(_, tally, _, _)| tally.entries > 0);
    let rows = rows.map(|(word, tally, tone, more)| SummaryRow {
        word,
        tone,
        rest: format!("{:>7}  {}{more}", tally.entries, size(tally.bytes)),
    });
    rows.collect()
}

/// Formats a time (in seconds since 1970) in the local time zone, with its offset from UTC.
pub(in crate::cli) fn time(seconds: i64) -> String {
    let offset = clock::utc_offset(seconds);
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    format!(
        "{} {sign}{:02}{:02}",
        civil(seconds.saturating_add(offset), ' '),
        minutes / 60,
        minutes % 60
    )
}

/// Formats a time (in seconds since 1970) in UTC as ISO 8601 and RFC 3339 have it.
pub(in crate::cli) fn utc(seconds: i64) -> String {
    format!("{}Z", civil(seconds, 'T'))
}

/// Formats the date and time of day that many seconds after the start of 1970.
fn civil(seconds: i64, between: char) -> String {
    // Howard Hinnant's "chrono-compatible low-level date algorithms": days since 1970 to a date.
    let days = seconds.div_euclid(86_400);
    let rest = seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}{between}{:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Aligns rows in columns. Cells must not contain colours.
pub(in crate::cli) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let escape = |row: &Vec<String>| row.iter().map(printable).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(escape).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                line.push_str(cell);
                if column + 1 < row.len() {
                    let width = widths.get(column).copied().unwrap_or(0);
                    line.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_significant_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_240, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_formatted_as_dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn summaries_omit_kinds_without_changes() {
        let mut summary = Summary::default();
        assert_eq!(changes(&summary), "nothing");
        summary.added.add(1);
        summary.renamed.add(1);
        assert_eq!(changes(&summary), "1 added, 1 renamed");
        assert_eq!(
            (count(1, "image"), count(0, "image")),
            ("1 image".into(), "0 images".into())
        );
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".into(), "b".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), ["a    b", "ccc  d"]);
        assert_eq!(table(&[vec!["a\nb".into(), "c".into()]]), ["a\\nb  c"]);
    }
}
