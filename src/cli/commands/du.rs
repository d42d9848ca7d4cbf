//! `envfs du`

mod html;
mod tree;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::cli::backend;
use crate::cli::context::{Context, Env};
use crate::cli::error::{CommandError, Result};
use crate::cli::new_file;
use crate::cli::output::{Output, Tone, count, size};
use crate::cli::revisions;
use crate::daemon::failure::Kind as FailureKind;
use crate::daemon::protocol::Selection;
use crate::object::Kind;
use crate::packages::{Differences, Package};
use crate::squashfs::reader::Parts;
use crate::sys::text::{Text, quoted};
use tree::{Node, ROOT, Totals, Tree};

/// The width of a bar.
const BAR: u64 = 16;
/// The most packages that are shown by default.
const MOST_PACKAGES: usize = 10;

/// Show what takes space, by package and by directory.
///
/// IMAGE is the size of content in the compressed image, CONTENT its size when read, CHANGES the
/// space on disk of content that is not committed. Every byte of the image is counted once: data
/// that several files share belongs to the first of them in the order of paths, a file with several
/// names to its first name, and small files that were compressed together share the block in
/// proportion to their sizes. Tables, and data that no file needs any more, are listed below.
///
/// With a revision, shows that revision without uncommitted changes. Reads no content, only names,
/// inodes and records of packages. See also --html for a map that you can explore.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  envfs du\n  envfs du science\n  envfs du science lib/python3.12 --depth 3\n  envfs du science@3 --packages\n  envfs du science --html science.html && xdg-open science.html\n  envfs du --json | jq '.packages[:5]'"
)]
pub struct Args {
    /// Environment [default: the active one], revision [default: the current state], and a path
    /// in it.
    #[arg(value_name = "[NAME] [REV] [PATH]", num_args = 0..=3)]
    words: Vec<OsString>,
    /// Show directories up to this depth. A directory with one entry counts as one with it.
    #[arg(short, long, default_value_t = 2, value_name = "LEVELS")]
    depth: usize,
    /// Show at most this many entries of a directory, and none below 0.5% of the whole; 0 for all.
    #[arg(short = 'n', long, default_value_t = 10, value_name = "COUNT")]
    limit: usize,
    /// Show all packages, and no directories.
    #[arg(long, conflicts_with_all = ["json", "depth", "limit"])]
    packages: bool,
    /// Write one HTML file with a map of the space, for a browser. It needs no network. - for
    /// standard output.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "packages", "depth", "limit"])]
    html: Option<PathBuf>,
    /// Replace the HTML file if it exists.
    #[arg(short, long, requires = "html")]
    force: bool,
    /// Print JSON: all packages and directories, with exact numbers of bytes.
    #[arg(long, conflicts_with_all = ["depth", "limit"])]
    json: bool,
}

/// What is shown.
struct Found {
    name: String,
    revision: i64,
    /// The path below which it was searched.
    path: Vec<u8>,
    parts: Parts,
    tree: Tree,
    /// Number of files with content that is not committed.
    uncommitted: u64,
}

#[derive(Debug, Serialize)]
struct Json<'a> {
    environment: &'a str,
    revision: i64,
    path: Text,
    image: Image,
    total: Totals,
    uncommitted_files: u64,
    packages: Vec<OfPackage<'a>>,
    unpackaged: Totals,
    directories: Vec<OfDirectory>,
}

/// The image by purpose. The parts add up to `bytes`.
#[derive(Debug, Serialize)]
struct Image {
    bytes: u64,
    #[serde(flatten)]
    parts: Parts,
}

#[derive(Debug, Serialize)]
struct OfPackage<'a> {
    #[serde(flatten)]
    package: &'a Package,
    #[serde(flatten)]
    totals: Totals,
}

#[derive(Debug, Serialize)]
struct OfDirectory {
    path: Text,
    #[serde(flatten)]
    totals: Totals,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let (env, found) = revisions::parse(context, &self.words, 1)?;
        if let Some(more) = found.paths.get(1) {
            return Err(CommandError::usage(format!(
                "one path at a time: {} is a second one",
                quoted(more)
            )));
        }
        let selection = env.select(found.paths)?;
        let revision = found.numbers.first().copied();
        if let Some(file) = &self.html
            && !self.force
            && file != Path::new("-")
        {
            new_file::refuse_existing(file)?;
        }
        let found = search(context, &env, revision, &selection)?;
        if self.json {
            return context.output.json(&found.json());
        }
        match &self.html {
            Some(file) => write_html(context, &found, file),
            None => self.show(context, &found),
        }
    }

    fn show(&self, context: &Context, found: &Found) -> Result<()> {
        let out = &context.output;
        let tree = &found.tree;
        let Some(root) = tree.nodes.get(ROOT) else {
            return Ok(());
        };
        found.show_head(out)?;
        let table = Table {
            out,
            whole: root.totals.disk(),
            has_changes: root.totals.uncommitted_bytes > 0,
        };
        let packages = tree.sorted_packages();
        if !packages.is_empty() {
            let most = match self.packages {
                true => usize::MAX,
                false => MOST_PACKAGES,
            };
            out.line("")?;
            table.head(&count(packages.len() as u64, "package"))?;
            for (package, totals) in packages.iter().take(most) {
                let name = format!("{} {}", package.name, package.version);
                table.row(totals, 0, &name, Tone::Strong)?;
            }
            let rest = packages.iter().skip(most).map(|(_, totals)| *totals);
            table.rest(rest, 0, "more package", "--packages lists them")?;
            if tree.unpackaged.disk() > 0 {
                table.row(&tree.unpackaged, 0, "outside packages", Tone::Dim)?;
            }
        } else if self.packages {
            out.note("no packages of conda, Python or Node");
        }
        if !self.packages {
            out.line("")?;
            table.head("directories")?;
            self.directory(&table, tree, ROOT, 0)?;
        }
        if found.path.is_empty() {
            out.line("")?;
            found.show_rest(out)?;
        }
        Ok(())
    }

    /// Shows the entries of a directory.
    fn directory(&self, table: &Table<'_>, tree: &Tree, at: usize, level: usize) -> Result<()> {
        let Some(node) = tree.nodes.get(at) else {
            return Ok(());
        };
        let shown = self.shown(table, tree, node);
        for child in node.children.iter().take(shown) {
            let (names, at) = tree.chain(*child);
            let Some(one) = tree.nodes.get(at) else {
                continue;
            };
            let (end, tone) = match one.kind {
                Kind::Directory => ("/", Tone::Strong),
                _ => ("", Tone::Dim),
            };
            let name = quoted(OsStr::from_bytes(&[&names, end.as_bytes()].concat()));
            table.row(&one.totals, level, &name, tone)?;
            if level + 1 < self.depth {
                self.directory(table, tree, at, level + 1)?;
            }
        }
        let rest = node.children.iter().skip(shown);
        let rest = rest.filter_map(|child| tree.nodes.get(*child).map(|one| one.totals));
        table.rest(rest, level, "more", "-n 0 lists all")
    }

    /// Returns how many entries of a directory are shown: at most the limit, and none that takes
    /// less than half a percent.
    fn shown(&self, table: &Table<'_>, tree: &Tree, dir: &Node) -> usize {
        let is_large = |at: &&usize| {
            let one = tree.nodes.get(**at);
            one.is_some_and(|one| one.totals.disk().saturating_mul(200) >= table.whole)
        };
        match self.limit {
            0 => dir.children.len(),
            limit => dir.children.iter().take(limit).take_while(is_large).count(),
        }
    }
}

/// Determines the space of an environment, or of a path in it.
fn search(
    context: &Context,
    env: &Env,
    revision: Option<i64>,
    selection: &Selection,
) -> Result<Found> {
    let progress = context.output.progress();
    let (opened, space) = backend::space(&env.environment, revision, &progress)?;
    let (uncommitted, changed) = match revision {
        Some(_) => (Vec::new(), Differences::default()),
        None => match backend::uncommitted(&env.environment)? {
            none if none.is_empty() => (none, Differences::default()),
            // They say which packages new files belong to.
            some => (some, env.service()?.differences(&Selection::default())?),
        },
    };
    progress.finish();
    let whole = Tree::of(&space, &uncommitted, &changed);
    let path = selection.paths.first();
    let path = path.map_or_else(Vec::new, |path| path.as_bytes().to_vec());
    let tree = match whole.find(&path) {
        Some(ROOT) => whole,
        Some(at) => whole.below(at),
        None => {
            let shown = quoted(OsStr::from_bytes(&path));
            let message = format!("'{shown}': no such path in the environment");
            return Err(CommandError::new(FailureKind::NotFound, message));
        }
    };
    let is_below = |of: &[u8]| {
        let rest = of.strip_prefix(&path[..]);
        path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    let below = uncommitted.iter().filter(|file| is_below(&file.path));
    Ok(Found {
        name: env.name().to_owned(),
        revision: opened,
        uncommitted: below.count() as u64,
        path,
        parts: space.parts,
        tree,
    })
}

fn write_html(context: &Context, found: &Found, file: &Path) -> Result<()> {
    let page = html::page(found)?;
    if file == Path::new("-") {
        return context.output.raw(page.as_bytes());
    }
    new_file::write(file, |output| {
        output
            .write_all(page.as_bytes())
            .map_err(|error| CommandError::io(format!("cannot write {}", quoted(file)), &error))
    })?;
    let bytes = size(page.len() as u64);
    context.output.note(format!("{}: {bytes}", quoted(file)));
    Ok(())
}

impl Found {
    fn totals(&self) -> Totals {
        self.tree
            .nodes
            .get(ROOT)
            .map_or_else(Totals::default, |root| root.totals)
    }

    fn show_head(&self, out: &Output) -> Result<()> {
        let totals = self.totals();
        let name = out.tone(&self.name, Tone::Strong);
        let revision = self.revision;
        let files = count(totals.files, "file");
        let content = size(totals.bytes);
        match self.path.is_empty() {
            true => {
                let image = size(self.parts.total());
                out.line(format!(
                    "{name}  revision {revision}: image of {image} with {content} in {files}"
                ))?;
            }
            false => {
                let path = quoted(OsStr::from_bytes(&self.path));
                let image = size(totals.image_bytes);
                out.line(format!(
                    "{name}  {path} in revision {revision}: {image} for {content} in {files}"
                ))?;
            }
        }
        if self.uncommitted > 0 {
            out.line(format!(
                "  uncommitted: {} on disk in {}",
                size(totals.uncommitted_bytes),
                count(self.uncommitted, "file")
            ))?;
        }
        Ok(())
    }

    /// Shows the parts of the image that are no content.
    fn show_rest(&self, out: &Output) -> Result<()> {
        let parts = &self.parts;
        out.line(format!(
            "{:>9}  metadata: inodes {}, names {}, tables {}, header and padding {}",
            size(parts.metadata() + parts.header + parts.padding),
            size(parts.inodes),
            size(parts.directories),
            size(parts.tables),
            size(parts.header + parts.padding)
        ))?;
        let advice = match parts.unused * 10 >= parts.total() {
            true => "; envfs commit --compact drops it",
            false => "",
        };
        out.line(format!(
            "{:>9}  unused: data that no file needs, mostly replaced by commits{advice}",
            size(parts.unused)
        ))
    }

    fn json(&self) -> Json<'_> {
        let packages = self.tree.sorted_packages();
        let directories = self.tree.nodes.iter().enumerate();
        let directories = directories.filter(|(_, node)| node.kind == Kind::Directory);
        Json {
            environment: &self.name,
            revision: self.revision,
            path: Text::from(OsStr::from_bytes(&self.path)),
            image: Image {
                bytes: self.parts.total(),
                parts: self.parts,
            },
            total: self.totals(),
            uncommitted_files: self.uncommitted,
            packages: packages
                .into_iter()
                .map(|(package, totals)| OfPackage {
                    package,
                    totals: *totals,
                })
                .collect(),
            unpackaged: self.tree.unpackaged,
            directories: directories
                .map(|(at, node)| {
                    let below = self.tree.path(at);
                    let path = match (self.path.is_empty(), below.is_empty()) {
                        (true, _) => below,
                        (false, true) => self.path.clone(),
                        (false, false) => [&self.path, &b"/"[..], &below].concat(),
                    };
                    OfDirectory {
                        path: Text::from(OsStr::from_bytes(&path)),
                        totals: node.totals,
                    }
                })
                .collect(),
        }
    }
}

/// Rows with sizes and bars.
struct Table<'a> {
    out: &'a Output,
    /// The bytes that fill a bar.
    whole: u64,
    has_changes: bool,
}

impl Table<'_> {
    fn head(&self, what: &str) -> Result<()> {
        let changes = match self.has_changes {
            true => format!("  {:>9}", "CHANGES"),
            false => String::new(),
        };
        let bar = match self.out.has_bars() {
            true => " ".repeat(BAR as usize + 2),
            false => String::new(),
        };
        let line = format!("{:>9}  {:>9}{changes}{bar}  {what}", "IMAGE", "CONTENT");
        self.out.line(self.out.tone(&line, Tone::Dim))
    }

    fn row(&self, totals: &Totals, level: usize, name: &str, tone: Tone) -> Result<()> {
        let changes = match (self.has_changes, totals.uncommitted_bytes) {
            (false, _) => String::new(),
            (true, 0) => format!("  {:>9}", "-"),
            (true, bytes) => {
                let text = format!("{:>9}", size(bytes));
                format!("  {}", self.out.tone(&text, Tone::Notice))
            }
        };
        let bar = match self.out.has_bars() {
            true => format!("  {}", self.bar(totals)),
            false => String::new(),
        };
        let (image, content) = (size(totals.image_bytes), size(totals.bytes));
        let name = self.out.tone(name, tone);
        let indent = "  ".repeat(level);
        self.out.line(format!(
            "{image:>9}  {content:>9}{changes}{bar}  {indent}{name}"
        ))
    }

    /// Shows the sum of rows that are left out.
    fn rest(
        &self,
        rows: impl Iterator<Item = Totals>,
        level: usize,
        what: &str,
        how: &str,
    ) -> Result<()> {
        let (mut number, mut sum) = (0, Totals::default());
        for totals in rows {
            number += 1;
            sum.add(totals);
        }
        if number == 0 {
            return Ok(());
        }
        let what = match what {
            "more" => format!("{number} more"),
            noun => count(number, noun),
        };
        self.row(&sum, level, &format!("… {what} ({how})"), Tone::Dim)
    }

    /// Returns a bar: what is committed, then what is not.
    fn bar(&self, totals: &Totals) -> String {
        let width = |bytes: u64| {
            let part = u128::from(bytes) * u128::from(BAR);
            (part.div_ceil(u128::from(self.whole.max(1))) as u64).min(BAR)
        };
        let all = width(totals.disk());
        let changes = match totals.uncommitted_bytes {
            0 => 0,
            bytes => width(bytes).min(all),
        };
        let blocks = |number: u64, tone| match number {
            0 => String::new(),
            number => self.out.tone(&"█".repeat(number as usize), tone),
        };
        [
            blocks(all - changes, Tone::Good),
            blocks(changes, Tone::Notice),
            " ".repeat((BAR - all) as usize),
        ]
        .concat()
    }
}
