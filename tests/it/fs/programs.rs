//! Package managers and other large programs in a mount, for each user. A commit and a remount must
//! not change the resulting tree.
//!
//! Tests that need a package registry are skipped without network access.

use std::path::Path;
use std::process::Stdio;

use super::{in_a_mount, in_the_mount_of};
use crate::support::{TestEnv, find, has, skip_allowed};

/// Environment variables that configure the access to registries.
const SETTINGS: [&str; 14] = [
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_REGISTRY",
    "UV_DEFAULT_INDEX",
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "no_proxy",
    "NO_PROXY",
];

/// Returns a script that sets these variables.
fn settings() -> String {
    let mut script = String::from(
        "export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_DEFAULT_TIMEOUT=60; ",
    );
    for name in SETTINGS {
        if let Ok(value) = std::env::var(name) {
            script.push_str(&format!("export {name}='{value}'; "));
        }
    }
    script
}

/// Returns whether packages can be downloaded from PyPI; reports a skip if not.
fn has_pypi() -> bool {
    if !has("python3") {
        return false;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "{}python3 -m venv '{1}/v' && '{1}/v/bin/pip' download -q --no-deps -d '{1}' six==1.16.0",
        settings(),
        dir.path().display()
    );
    let tried = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .output();
    let is_there = tried.is_ok_and(|output| output.status.success());
    if !is_there {
        skip_allowed("PyPI cannot be reached");
    }
    is_there
}

#[test]
fn pip_installs_upgrades_and_removes() {
    if !has_pypi() {
        return;
    }
    let script = format!(
        "{}python3 -m venv v; v/bin/pip install -q six==1.16.0 packaging==23.0
         v/bin/python -c 'import six; assert six.__version__ == \"1.16.0\"'
         v/bin/pip install -q --upgrade six==1.17.0 packaging; v/bin/python -c 'import six; assert six.__version__ == \"1.17.0\"'
         v/bin/pip install -q --force-reinstall six==1.16.0; v/bin/pip uninstall -q -y packaging; ! v/bin/python -c 'import packaging' 2>/dev/null || exit 1
         v/bin/pip install -q packaging==23.0; v/bin/pip check; v/bin/python -m compileall -q v/lib
         test -z \"$(find v -name '~*')\"; python3 -m venv --upgrade v; v/bin/pip list -q",
        settings()
    );
    in_a_mount(&["python3"], &script);
}

#[test]
fn pip_changes_packages_of_the_image() {
    if !has_pypi() {
        return;
    }
    let prepare = "python3 -m venv v; v/bin/pip install -q six==1.16.0 packaging==23.0; envfs commit -q e; envfs commit -q --rebuild e";
    let script = format!(
        "{}{prepare}; v/bin/pip install -q --upgrade six==1.17.0; v/bin/pip uninstall -q -y packaging
         v/bin/python -c 'import six; assert six.__version__ == \"1.17.0\"'; ! ls -d v/lib/python*/site-packages/packaging* 2>/dev/null || exit 1
         v/bin/pip install -q --force-reinstall --no-deps six==1.16.0 packaging==23.0; v/bin/pip check; test -z \"$(find v -name '~*')\"
         mv v/lib w; mv w v/lib; v/bin/python -c 'import six, packaging'",
        settings()
    );
    in_a_mount(&["python3"], &script);
}

#[test]
fn uv_creates_an_environment_and_installs() {
    if !has_pypi() {
        return;
    }
    let script = format!(
        "{}export UV_CACHE_DIR=\"$TMPDIR/uv-cache\" UV_PYTHON_DOWNLOADS=never; python3 -m venv t; t/bin/pip install -q uv
         t/bin/uv venv -q u; for mode in hardlink clone copy symlink; do
         VIRTUAL_ENV=$PWD/u t/bin/uv pip install -q --reinstall --link-mode $mode six==1.16.0 packaging==23.0; u/bin/python -c 'import six, packaging'; done
         VIRTUAL_ENV=$PWD/u t/bin/uv pip install -q --reinstall --link-mode copy six==1.17.0 packaging==23.0
         VIRTUAL_ENV=$PWD/u t/bin/uv pip uninstall -q packaging
         UV_CACHE_DIR=$PWD/cache VIRTUAL_ENV=$PWD/u t/bin/uv pip install -q --link-mode hardlink packaging==23.0; u/bin/python -c 'import packaging'",
        settings()
    );
    in_a_mount(&["python3"], &script);
}

#[test]
fn npm_installs_a_large_tree() {
    if find("npm").is_none() {
        return skip_allowed("no npm");
    }
    let probe = format!("{}npm view --silent left-pad version", settings());
    let tried = std::process::Command::new("/bin/sh")
        .args(["-c", &probe])
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return skip_allowed("the registry of npm cannot be reached");
    }
    let script = format!(
        "{}mkdir app; cd app; npm init -y >/dev/null; npm install --silent --no-audit --no-fund eslint@8.57.0 webpack@5.90.0
         test $(find node_modules -type f | wc -l) -gt 3000; node node_modules/eslint/bin/eslint.js --version
         npm install --silent --no-audit --no-fund lodash@4.17.20; npm install --silent --no-audit --no-fund lodash@4.17.21
         npm uninstall --silent --no-audit --no-fund webpack; npm ls --silent >/dev/null; npm ci --silent --no-audit --no-fund
         node -e 'require(\"lodash\"); require(\"eslint\")'",
        settings()
    );
    in_a_mount(&["npm"], &script);
}

/// Only on request, because it installs about 40 packages. The kernel is started from changes and
/// from an image.
#[test]
fn a_jupyter_kernel_starts_and_saves() {
    if std::env::var_os("ENVFS_TEST_JUPYTER").is_none() {
        return skip_allowed("ENVFS_TEST_JUPYTER=1 is not set");
    }
    if !has_pypi() {
        return;
    }
    let script = format!(
        "{}python3 -m venv v; v/bin/pip install -q ipykernel jupyter_client nbformat
         export JUPYTER_DATA_DIR=$PWD/data JUPYTER_RUNTIME_DIR=$PWD/run IPYTHONDIR=$PWD/ipython; v/bin/python -m ipykernel install --sys-prefix >/dev/null
         cat >run.py <<'END_OF_BOOK'
from jupyter_client.manager import start_new_kernel
import nbformat
manager, client = start_new_kernel(kernel_name='python3')
said = []
client.execute_interactive('open(\"made\", \"w\").write(\"x\"); print(6 * 7)', output_hook=lambda m: said.append(m['content'].get('text')), timeout=60)
assert '42\\n' in said, said
manager.shutdown_kernel()
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('6 * 7')])
nbformat.write(book, 'book.ipynb'); nbformat.read('book.ipynb', 4)
END_OF_BOOK
         v/bin/python run.py; test -s made; rm -rf made run; envfs commit -q e; v/bin/python run.py; test -s made
         v/bin/python -c 'import sqlite3; h = sqlite3.connect(\"ipython/profile_default/history.sqlite\"); assert h.execute(\"select count(*) from history\").fetchone()[0] >= 2, h'
         rm -rf run",
        settings()
    );
    in_a_mount(&["python3"], &script);
}

#[test]
fn rsync_preserves_everything_both_ways() {
    let script = "S=\"$TMPDIR/outside\"; mkdir \"$S\"; cp -a lib \"$S/\"; setfattr -n user.k -v v \"$S/lib/c.txt\"; truncate -s 1M \"$S/lib/sparse\"
         rsync -aHX \"$S/lib/\" copy/; test -z \"$(rsync -aHXni --delete \"$S/lib/\" copy/)\"
         echo x >>copy/a.txt; rm copy/c.txt; mv copy/deep copy/moved; rsync -aHX --delete copy/ \"$S/back/\"; test -z \"$(rsync -aHXni --delete copy/ \"$S/back/\")\"
         cmp \"$S/back/a.txt\" \"$S/back/b.txt\"; test $(stat -c %h \"$S/back/a.txt\") = 2
         rsync -aHAX lib/ third/; rsync -aHAX third/ \"$S/third/\"; diff -r third \"$S/third\"; rsync -a --inplace --no-whole-file \"$S/lib/\" third/; rm -rf \"$S\"";
    in_a_mount(&["rsync", "setfattr"], script);
}

#[test]
fn tar_preserves_all_file_types() {
    let script = "mkfifo lib/fifo; setfattr -n user.k -v v lib/c.txt; truncate -s 2M lib/sparse; echo end >>lib/sparse
         tar --xattrs --sparse -cpf all.tar lib; mkdir out; tar --xattrs -xpf all.tar -C out; tar --xattrs -df all.tar -C out
         test -p out/lib/fifo; getfattr -n user.k out/lib/c.txt >/dev/null; test $(stat -c %h out/lib/a.txt) = 2; test $(stat -c %b out/lib/sparse) -lt 1000
         tar -cf - lib | tar -xf - -C out; tar --append -f all.tar bin; tar -tf all.tar bin/tool; rm all.tar";
    in_a_mount(&["tar", "setfattr"], script);
}

#[test]
fn cargo_builds_and_rebuilds() {
    if !has("gcc") {
        return;
    }
    // The toolchain that built the tests, not the shim of rustup, which works for one user only.
    let cargo = Path::new(env!("CARGO"));
    for env in TestEnv::of_all_users() {
        let mut probe = env.command(cargo);
        probe
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !probe.status().is_ok_and(|status| status.success()) {
            skip_allowed(&format!(
                "{} cannot be run by {}",
                cargo.display(),
                env.user().name()
            ));
            continue;
        }
        let script = format!(
            "export CARGO_HOME=\"$TMPDIR/cargo\" PATH=\"{}:$PATH\" CARGO_INCREMENTAL=1
             cargo init -q --vcs none --name small app; cd app; cargo build -q --offline; test \"$(target/debug/small)\" = 'Hello, world!'
             echo 'mod other; fn main() {{ println!(\"{{}}\", other::ONE); }}' >src/main.rs; echo 'pub const ONE: u8 = 1;' >src/other.rs
             cargo build -q --offline; test \"$(target/debug/small)\" = 1; cargo build --offline 2>&1 | grep -q Finished
             envfs commit -q e; echo 'pub const ONE: u8 = 2;' >src/other.rs; cargo build -q --offline; test \"$(target/debug/small)\" = 2
             cargo clean -q; cargo build -q --offline",
            cargo.parent().unwrap().display()
        );
        in_the_mount_of(&env, &script);
    }
}

#[test]
fn git_works_on_a_repository_in_the_image() {
    // Every git command names its repository, so that git does not find one in a parent directory.
    let script = "export GIT_CEILING_DIRECTORIES=\"$P\"; mkdir r; git -C r init -q -b main
         for n in 1 2 3 4 5 6 7 8; do mkdir r/d$n; echo $n >r/d$n/f; git -C r add .; git -C r commit -qm $n; done
         envfs commit -q e; envfs commit -q --rebuild e; test -z \"$(git -C r status --porcelain)\"; git -C r fsck --strict 2>/dev/null
         git -C r checkout -q HEAD~3; test ! -e r/d8; git -C r checkout -q main; test -e r/d8/f; git clone -q r linked; git clone -q --no-hardlinks r copied
         git -C r mv d1 moved; git -C r commit -qm moved; git -C r rm -rq d2; git -C r commit -qm removed; git -C r gc -q --prune=now; git -C r fsck --strict 2>/dev/null
         git -C linked pull -q; test -e linked/moved/f; git -C r reset -q --hard HEAD~2; test -e r/d2/f; git -C r worktree add -q \"$P/tree\" HEAD~1; test -z \"$(git -C tree status --porcelain)\"";
    in_a_mount(&["git"], script);
}

#[test]
fn sqlite_survives_a_kill_of_the_daemon() {
    let Some(env) = TestEnv::new() else {
        return;
    };
    if !has("sqlite3") {
        return;
    }
    env.import_sample("e");
    let at = env.mount("e").display().to_string();
    let begin = "pragma journal_mode=wal; pragma synchronous=full; create table t(x);";
    env.sh(&format!("cd '{at}'; sqlite3 db '{begin}' >/dev/null"))
        .ok();
    let insert = "insert into t select coalesce(max(x), 0) + 1 from t;";
    for round in 1..=3 {
        env.sh(&format!(
            "cd '{at}'; for n in 1 2 3 4 5; do sqlite3 db '{insert}'; done"
        ))
        .ok();
        env.kill_daemon("e");
        env.mount("e");
        let ask = "pragma integrity_check; select count(*) from t";
        let seen = env.sh(&format!("cd '{at}'; sqlite3 db '{ask}'"));
        assert_eq!(seen.ok().out, format!("ok\n{}\n", round * 5));
    }
}
