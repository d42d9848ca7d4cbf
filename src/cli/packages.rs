//! Changed packages in text.

use super::output::{Output, Tone, count};
use crate::packages::{Edited, Package, PackageChanges, Upgraded};
use crate::union::Summary;

/// The most packages of a kind in one line.
const MOST_IN_A_LINE: usize = 8;

/// Returns a line for each changed package, and how many more there are above `most` of a kind.
pub(super) fn lines(output: &Output, changes: &PackageChanges, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (word, tone, packages) in kinds(changes, Origin::Shown) {
        let word = head(output, word, tone);
        let shown = packages.iter().take(most);
        lines.extend(shown.map(|package| format!("{word} {package}")));
        if packages.len() > most {
            lines.push(format!("{word} and {} more", packages.len() - most));
        }
    }
    if changes.omitted > 0 {
        lines.push(format!("and {} more", count(changes.omitted, "package")));
    }
    lines
}

/// Returns a line for each kind of change.
pub(super) fn summary(output: &Output, changes: &PackageChanges) -> Vec<String> {
    let mut lines = Vec::new();
    for (word, tone, packages) in kinds(changes, Origin::Hidden) {
        let mut line = head(output, word, tone);
        for (place, package) in packages.iter().take(MOST_IN_A_LINE).enumerate() {
            let separator = if place == 0 { " " } else { ", " };
            line.push_str(separator);
            line.push_str(package);
        }
        if packages.len() > MOST_IN_A_LINE {
            line.push_str(&format!(" and {} more", packages.len() - MOST_IN_A_LINE));
        }
        lines.push(line);
    }
    if changes.omitted > 0 {
        lines.push(format!("and {} more", count(changes.omitted, "package")));
    }
    lines
}

/// Returns a line for each kind of change, for standard error.
pub(super) fn summary_for_notes(output: &Output, changes: &PackageChanges) -> Vec<String> {
    summary(&output.of_notes(), changes)
}

/// Returns a line about changed bytecode, if there is any.
pub(super) fn bytecode(output: &Output, changes: &PackageChanges) -> Option<String> {
    let files = changes.bytecode.entries;
    let word = head(output, "bytecode", Tone::Dim);
    (files > 0).then(|| format!("{word} {}", count(files, "file")))
}

/// Returns the number of changes.
pub(super) fn entries(summary: &Summary) -> u64 {
    let tallies = [
        summary.added,
        summary.modified,
        summary.touched,
        summary.removed,
        summary.renamed,
    ];
    tallies.iter().map(|tally| tally.entries).sum()
}

fn head(output: &Output, word: &str, tone: Tone) -> String {
    output.tone(&format!("{word:11}"), tone)
}

/// A kind of change: its word and the packages.
type Of = (&'static str, Tone, Vec<String>);

fn kinds(changes: &PackageChanges, origin: Origin) -> Vec<Of> {
    let (downgraded, upgraded): (Vec<&Upgraded>, Vec<&Upgraded>) = changes
        .upgraded
        .iter()
        .partition(|one| is_older(&one.package.version, &one.from));
    let to = |one: &Upgraded| {
        let now = &one.package;
        // Versions that are equal differ in their builds.
        match (&one.from_build, &now.build) {
            (Some(from), Some(to)) if one.from == now.version => {
                format!("{} {} {from} → {to}", now.name, now.version) + &origin.of(now)
            }
            _ => format!("{} {} → {}", now.name, one.from, now.version) + &origin.of(now),
        }
    };
    let all = |list: &[Package]| list.iter().map(|one| plain(one, origin)).collect();
    let edited = changes.edited.iter().map(|one| edits(one, origin));
    let kinds = [
        (
            "upgraded",
            Tone::Notice,
            upgraded.into_iter().map(to).collect(),
        ),
        (
            "downgraded",
            Tone::Notice,
            downgraded.into_iter().map(to).collect(),
        ),
        ("installed", Tone::Good, all(&changes.installed)),
        ("removed", Tone::Bad, all(&changes.removed)),
        ("reinstalled", Tone::Notice, all(&changes.reinstalled)),
        ("edited", Tone::Notice, edited.collect()),
    ];
    let mut kinds = Vec::from(kinds);
    kinds.retain(|(_, _, packages): &Of| !packages.is_empty());
    kinds
}

/// Whether the package manager of a package is shown.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Shown,
    Hidden,
}

impl Origin {
    fn of(self, package: &Package) -> String {
        match self {
            Origin::Shown => format!(" ({})", package.ecosystem.as_str()),
            Origin::Hidden => String::new(),
        }
    }
}

fn plain(package: &Package, origin: Origin) -> String {
    format!("{} {}{}", package.name, package.version, origin.of(package))
}

fn edits(one: &Edited, origin: Origin) -> String {
    let counts: Vec<String> = [
        (one.edited, ""),
        (one.removed, " removed"),
        (one.restored, " restored"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, word)| format!("{}{word}", count(number, "file")))
    .collect();
    format!("{}: {}", plain(&one.package, origin), counts.join(", "))
}

/// Returns whether a version is older than another, as far as their numbers tell.
fn is_older(version: &str, than: &str) -> bool {
    // What follows the release does not matter, except where the releases are equal: too many rules
    // exist for it.
    let numbers = |text: &str| -> Vec<u64> {
        let (epoch, release) = text.split_once('!').unwrap_or(("0", text));
        let release = release
            .split('.')
            .map_while(|part| part.parse::<u64>().ok());
        epoch.parse().into_iter().chain(release).collect()
    };
    let (mut new, mut old) = (numbers(version), numbers(than));
    let longest = new.len().max(old.len());
    new.resize(longest, 0);
    old.resize(longest, 0);
    new < old
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (new, old, expected) in [
            ("1.26.4", "2.1.0", true),
            ("2.1.0", "1.26.4", false),
            ("1.9", "1.10", true),
            ("1.0", "1.0.0", false),
            ("1.0rc1", "1.0", false),
            ("0.9", "1!0.1", true),
            ("x", "y", false),
        ] {
            assert_eq!(is_older(new, old), expected, "{new} {old}");
        }
    }
}
