# fish completion of portretry-udev: the program itself says what may come next (click's protocol).
# Its place is /usr/share/fish/vendor_completions.d, or ~/.config/fish/completions.

function __portretry_udev_complete
    set -l lines (COMP_WORDS=(commandline --cut-at-cursor --current-process) COMP_CWORD=(commandline --current-token) \
        _PORTRETRY_UDEV_COMPLETE=fish_complete portretry-udev 2>/dev/null)
    for line in $lines
        set -l parts (string split --max 1 , -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end

complete --command portretry-udev --no-files --arguments '(__portretry_udev_complete)'
