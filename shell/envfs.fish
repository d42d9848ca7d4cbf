# envfs for fish: source this file, or put in ~/.config/fish/config.fish:  envfs hook fish | source
#
# Defines the function envfs. It evaluates the output of activate, deactivate and reactivate in
# this shell and passes everything else to the program. In an interactive shell, fish_prompt is
# wrapped while an environment is active, so that it shows the environment's name.

function envfs --description 'Environments as single compressed files'
    switch "$argv[1]"
        case activate deactivate reactivate
            if string match -qr -- '^(-h|--help|--shell|--shell=.*)$' $argv
                command envfs $argv
                return
            end
            # The output is evaluated only if the command succeeded.
            set -l __envfs_text (command envfs __shell fish $fish_pid $argv)
            or return
            # The environment's scripts must not see variables or arguments of this function.
            set argv "set argv
"(string join \n -- $__envfs_text | string collect)
            set -e __envfs_text
            eval $argv
        case '*'
            command envfs $argv
    end
end

if status is-interactive
    function __envfs_status
        return $argv[1]
    end

    # The prompt of conda's hook shows conda environments already.
    function __envfs_marker
        if functions -q __conda_add_prompt
            and contains -- "$ENVFS_PREFIX" $CONDA_PREFIX $CONDA_PREFIX_1 $CONDA_PREFIX_2 $CONDA_PREFIX_3
            return
        end
        printf '%s' $ENVFS_PROMPT_MODIFIER
    end

    # Start files may have reset PATH in a shell that inherited an active environment. A conda
    # environment on top has taken the place in PATH.
    function __envfs_check
        test -n "$ENVFS_PREFIX"
        and contains -- "$CONDA_PREFIX" "$ENVFS_PREFIX" ''
        and not contains -- "$ENVFS_PREFIX/bin" $PATH
        and not contains -- "$ENVFS_PREFIX/node_modules/.bin" $PATH
        and echo "envfs: $ENVFS_ENV is only half active in this shell, because PATH was reset: envfs reactivate" >&2
    end

    # Runs before each prompt, because anything may have replaced fish_prompt since.
    function __envfs_prompt --on-event fish_prompt
        if not set -q __envfs_checked
            set -g __envfs_checked
            __envfs_check
        end
        if set -q ENVFS_PROMPT_MODIFIER
            if not functions fish_prompt | string match -q '*__envfs_plain_prompt*'
                functions -e __envfs_plain_prompt
                functions -c fish_prompt __envfs_plain_prompt
                function fish_prompt --description 'The prompt with the name of the environment'
                    set -l __envfs_last $status
                    set -q ENVFS_PROMPT_MODIFIER
                    and __envfs_marker
                    __envfs_status $__envfs_last
                    __envfs_plain_prompt
                end
            end
        else if functions -q __envfs_plain_prompt
            if functions fish_prompt | string match -q '*__envfs_plain_prompt*'
                functions -e fish_prompt
                functions -c __envfs_plain_prompt fish_prompt
            end
            functions -e __envfs_plain_prompt
        end
    end

    function __envfs_complete
        set -l words (commandline -opc)
        set -l index (count $words)
        set -l typed (commandline -ct | string unescape)
        # An open quote cannot be unescaped.
        test -n "$typed"; or set typed (commandline -ct | string trim -l -c '"\'')
        set -l found (command envfs __complete $index -- $words "$typed" 2>/dev/null)
        if test "$found[1]" = //files
            __fish_complete_path "$typed"
        else if test "$found[1]" = //dirs
            __fish_complete_directories "$typed"
        else
            string join \n -- $found
        end
    end
    complete -c envfs -e
    complete -c envfs -f -a '(__envfs_complete)'
end
