//! The behaviour of a mounted file system: single properties, known faults of other unions, and
//! real programs.

#![allow(clippy::unwrap_used)]

pub(crate) mod direct;
mod documented;
mod handles;
mod owners;
mod posix;
mod programs;
mod stacks;
mod syncs;
mod union_faults;

use crate::support::tree::{self, Look};
use crate::support::{TestEnv, has, images, run_for, samples};

/// Runs a script in a mount, for each user, and checks that a commit and a remount do not change
/// the result.
fn in_a_mount(programs: &[&str], script: &str) {
    if !programs.iter().all(|program| has(program)) {
        return;
    }
    for env in TestEnv::of_all_users() {
        in_the_mount_of(&env, script);
    }
}

/// Like [`in_a_mount`], for one user.
fn in_the_mount_of(env: &TestEnv, script: &str) {
    env.import_sample("e");
    let prefix = env.mount("e");
    let at = prefix.display();
    let settings = "export GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b \
                    GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b";
    let mut command = env.command("/bin/sh");
    command.args(["-ec", &format!("{settings}; P='{at}'; cd '{at}'; {script}")]);
    let done = run_for(command, 900).ok();
    assert!(!done.err.contains("not implemented"), "{done}");
    // Without sizes, which are arbitrary for directories.
    let listing = format!(
        "cd '{at}'; find . -printf '%p %y %m %n %Y %Ts %l\\n' | grep -v '^\\. ' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum"
    );
    let before = env.sh(&listing).ok().out;
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(env.sh(&listing).ok().out, before, "after the commit");
    env.envfs(&["unmount", "e"]).ok();
    env.mount("e");
    assert_eq!(env.sh(&listing).ok().out, before, "after the remount");
    env.verify("e");
}

#[test]
fn git_works_in_a_mount() {
    in_a_mount(
        &["git"],
        "git init -q -b main repo; cd repo; for n in 1 2 3 4 5; do echo $n >f$n; git add f$n; git commit -qm $n; done
         git clone -q . ../clone; git gc -q --prune=now; git fsck --strict 2>&1; git status --porcelain
         cd ../clone; git checkout -q -b other HEAD~2; echo x >>f1; git commit -qam x; git merge -q -m m main
         git stash list; git worktree add -q ../tree main; git -C ../tree log --oneline >/dev/null; git fsck",
    );
}

#[test]
fn git_clones_and_packs_a_committed_repository() {
    if !has("git") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e").display().to_string();
    let git = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b";
    env.sh(&format!(
        "{git}; cd '{at}'; git init -q repo; cd repo; echo 1 >f; git add f; git commit -qm 1"
    ))
    .ok();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.sh(&format!("{git}; cd '{at}'; git clone -q repo clone; cd repo; git gc -q; echo 2 >f; git commit -qam 2; git fsck; cd ../clone; git pull -q; test $(cat f) = 2")).ok();
    env.verify("e");
}

#[test]
fn cp_tar_and_mv_preserve_trees() {
    in_a_mount(
        &["tar"],
        "cp -a lib copy; diff -r lib copy; test $(stat -c %h copy/a.txt) = 2
         tar -cf all.tar lib bin; mkdir out; tar -xpf all.tar -C out; diff -r lib out/lib; test $(stat -c %h out/lib/a.txt) = 2
         mv lib/deep moved; test -s moved/er/file; mv moved lib/deep; rm -rf lib; mkdir lib; test -z \"$(ls -A lib)\"
         mv copy/deep lib/; test -e lib/deep/er/file; cp -al lib linked; test $(stat -c %h linked/deep/x) = 2
         find . -name '*.txt' | sort; find . -newer bin/tool -type d >/dev/null
         ln -s \"$P/lib\" absolute; test -d absolute/deep; rm -rf out all.tar",
    );
}

#[test]
fn rsync_copies_within_a_mount() {
    in_a_mount(
        &["rsync"],
        "rsync -aHX lib/ copy/; test -z \"$(rsync -aHXni lib/ copy/)\"; echo x >>copy/c.txt; rsync -aHX copy/ lib/; cmp lib/c.txt copy/c.txt",
    );
}

#[test]
fn sqlite_works_in_wal_mode() {
    in_a_mount(
        &["sqlite3"],
        "sqlite3 db 'pragma journal_mode=wal; create table t(x); insert into t values(1),(2);' >/dev/null
         for n in 1 2 3; do sqlite3 db \"pragma busy_timeout=20000; insert into t select x+1 from t\" >/dev/null & done; wait
         test \"$(sqlite3 db 'select count(*) from t; pragma integrity_check;' | tr '\\n' ' ')\" = '16 ok '
         sqlite3 other 'create table t(x); begin; insert into t values(randomblob(100000)); rollback; vacuum; pragma integrity_check' ",
    );
}

#[test]
fn make_rebuilds_a_c_project() {
    in_a_mount(
        &["gcc", "make"],
        "mkdir c; cd c; for n in 1 2 3 4; do echo \"int f$n(void){return $n;}\" >f$n.c; done
         echo 'int f1(void);int f2(void);int f3(void);int f4(void);int main(void){return f1()+f2()+f3()+f4()-10;}' >main.c
         printf 'all: p\\np: main.o f1.o f2.o f3.o f4.o\\n\\tgcc -o $@ $^\\n' >Makefile
         make -s -j2; ./p; touch f2.c; make -s -j2; ./p; make -q; ar rcs lib.a f1.o f2.o; mv p q; cp q p; ./p",
    );
}

#[test]
fn python_compiles_and_imports_modules() {
    in_a_mount(
        &["python3"],
        "mkdir -p lib/pkg/sub; for n in 1 2 3 4 5 6; do echo \"X=$n\" >lib/pkg/m$n.py; done; touch lib/pkg/__init__.py lib/pkg/sub/__init__.py
         python3 -m compileall -q -j2 lib/pkg; ls lib/pkg/__pycache__ | wc -l
         PYTHONPATH=lib python3 -c 'import pkg.m1, pkg.sub; assert pkg.m1.X == 1'
         echo 'X=11' >lib/pkg/m1.py; touch -d '2030-01-01' lib/pkg/m1.py; PYTHONPATH=lib python3 -c 'import pkg.m1; assert pkg.m1.X == 11'
         python3 -c \"
import mmap, os, fcntl
f = open('lib/c.txt', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0:1] = b'G'; m.flush(); m.close(); f.close()
assert open('lib/c.txt').read() == 'Gamma\\\\n'
f = open('t', 'w+'); os.unlink('t'); f.write('x'); f.flush(); assert os.fstat(f.fileno()).st_nlink == 0; f.close()
f = open('l', 'w'); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX); f.close()
f = open('s', 'wb'); f.seek(1 << 20); f.write(b'x'); f.close(); assert os.lseek(os.open('s', os.O_RDONLY), 0, os.SEEK_DATA) > 0
os.posix_fallocate(os.open('a', os.O_RDWR | os.O_CREAT), 0, 100000); assert os.stat('a').st_size == 100000
os.copy_file_range(os.open('s', os.O_RDONLY), os.open('b', os.O_RDWR | os.O_CREAT), 1000)
\"",
    );
}

#[test]
fn known_faults_of_union_file_systems() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let at = prefix.display();
    env.sh(&format!(
        "cd '{at}'
         i=$(stat -c %i lib/a.txt); ln lib/a.txt lib/n.txt; test $(stat -c %i lib/a.txt) = $i; test $(stat -c %h lib/b.txt) = 3
         echo x >>lib/a.txt; test \"$(tail -n1 lib/b.txt)\" = x; test $(stat -c %i lib/n.txt) = $i
         m=$(stat -c %Y lib/deep); echo y >>lib/deep/x; test $(stat -c %Y lib/deep) = $m
         exec 3<lib/c.txt; echo new >lib/c.txt; read -r line <&3; test \"$line\" = new
         exec 4<>lib/link; rm lib/a.txt; echo z >&4; exec 4>&-
         chmod 2775 lib; mkdir lib/sub; test $(stat -c %A lib/sub | cut -c7) = s
         : >.wh.x; rm .wh.x; name=$(printf '%0255d' 0); touch $name; ! touch ${{name}}0 2>/dev/null || exit 1; rm $name
         ls -A lib >/dev/null; for n in $(seq 200); do : >many$n; done; ls | while read f; do case $f in many*) rm $f;; esac; done; test -z \"$(ls -d many* 2>/dev/null)\"
         set -- $(stat -f -c %l .); test $1 = 255"
    ))
    .ok();
    let seen = tree::read(&prefix);
    env.envfs(&["commit", "-q", "e"]).ok();
    tree::assert_same(&seen, &tree::read(&prefix), Look::ALL, "commit");
    env.envfs(&["unmount", "e"]).ok();
    images::assert_read_by_others(&env, &images::current(&env, "e"), &seen);
}

#[test]
fn large_image_files_can_be_changed() {
    for env in TestEnv::of_all_users() {
        let source = env.work().join("source");
        for (name, seed) in [("written", 1), ("cut", 2), ("punched", 3), ("grown", 4)] {
            env.write(&source.join(name), samples::noise(3 << 20, seed));
        }
        env.envfs(&["import", "-q", source.to_str().unwrap(), "e"])
            .ok();
        let prefix = env.mount("e");
        for dir in [&source, &prefix] {
            // The first change of each file; several processes write one of them at once.
            env.sh(&format!(
                "cd '{}'; for n in 1 2 3 4; do
                     printf $n | dd of=written bs=1 seek=${{n}}00001 conv=notrunc status=none &
                 done; wait
                 truncate -s 2000001 cut; fallocate -p -o 4096 -l 1048576 punched; truncate -s 4M grown",
                dir.display()
            ))
            .ok();
        }
        let sums = |dir: &std::path::Path| {
            let script = format!("cd '{}'; sha256sum *; stat -c '%n %s' *", dir.display());
            env.sh(&script).ok().out
        };
        assert_eq!(sums(&prefix), sums(&source));
        env.envfs(&["commit", "-q", "e"]).ok();
        assert_eq!(sums(&prefix), sums(&source), "after the commit");
    }
}
