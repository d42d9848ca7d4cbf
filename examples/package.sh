#!/bin/sh -eu
# Makes packages of envfs:
#
#   examples/package.sh PROGRAM OUT
#
# PROGRAM is the built program (target/release/envfs), OUT a directory. Writes
#
#   envfs_VERSION_ARCH.deb       with cargo-deb (cargo install cargo-deb), if it is installed
#   envfs-VERSION-ARCH.tar.gz    to be unpacked into /usr/local or ~/.local
#
# and says which version of glibc the program needs. The manual pages and completions are made by the program.

case ${1-} in
'' | -*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
program=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
source=$(realpath "$(dirname "$0")/..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A tree like the source, with a target directory of its own.
mkdir -p "$scratch/tree/target/release" "$scratch/tree/target/package"
for name in Cargo.toml Cargo.lock README.md LICENSE-MIT LICENSE-APACHE docs src tests benches examples migrations shell; do
    ln -s "$source/$name" "$scratch/tree/$name"
done
cd "$scratch/tree"
cp "$program" target/release/envfs
package=target/package
"$program" man --out "$package/man"
"$program" completions bash >"$package/envfs.bash"
"$program" completions zsh >"$package/_envfs"
"$program" completions fish >"$package/envfs.fish"

if command -v cargo-deb >/dev/null; then
    env -u CARGO_TARGET_DIR cargo-deb --quiet --no-build --no-strip --output "$out/"
else
    echo "no cargo-deb, so no .deb: cargo install cargo-deb" >&2
fi

version=$("$program" --version | cut -d' ' -f2)
root=envfs-$version-$(uname -m)
mkdir -p "$root/bin" "$root/share/man/man1" "$root/share/bash-completion/completions" \
    "$root/share/zsh/site-functions" "$root/share/fish/vendor_completions.d" "$root/share/doc/envfs"
cp target/release/envfs "$root/bin/"
gzip -9n "$package"/man/*.1
cp "$package"/man/*.1.gz "$root/share/man/man1/"
cp "$package/envfs.bash" "$root/share/bash-completion/completions/envfs"
cp "$package/_envfs" "$root/share/zsh/site-functions/"
cp "$package/envfs.fish" "$root/share/fish/vendor_completions.d/"
cp README.md LICENSE-MIT LICENSE-APACHE docs/*.md "$root/share/doc/envfs/"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$(date +%s)}" \
    -czf "$out/$root.tar.gz" "$root"

needs=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
echo "needs ${needs#GLIBC_} or later of glibc"
ls "$out"
