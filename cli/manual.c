/* `sluicectl completion` and `manual`: made from the tables, so that they cannot be out of date. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

/* ---- completion ---- */

/* The first words of all commands, each once. */
static void first_words(sl_buf *out)
{
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++) {
        size_t size = strcspn(CTL_COMMANDS[i].name, " ");
        if (i > 0 && strncmp(CTL_COMMANDS[i - 1].name, CTL_COMMANDS[i].name, size) == 0 &&
            CTL_COMMANDS[i - 1].name[size] == ' ')
            continue;
        sl_buf_printf(out, "%s%.*s", i ? " " : "", (int)size, CTL_COMMANDS[i].name);
    }
}

/* What follows a first word: second words, or "@node" where a node's name does. */
static void second_words(sl_buf *out)
{
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++) {
        const char *name = CTL_COMMANDS[i].name, *space = strchr(name, ' ');
        size_t size = strcspn(name, " ");
        bool again = i > 0 && strncmp(CTL_COMMANDS[i - 1].name, name, size + 1) == 0;
        if (space && !again)
            sl_buf_printf(out, "    %.*s) words=\"", (int)size, name);
        if (space)
            sl_buf_printf(out, "%s%s", again ? " " : "", space + 1);
        bool last =
            i + 1 == CTL_COMMAND_COUNT || strncmp(CTL_COMMANDS[i + 1].name, name, size + 1) != 0;
        if (space && last)
            sl_buf_puts(out, "\" ;;\n");
        if (!space && strncmp(CTL_COMMANDS[i].words, "NODE", 4) == 0)
            sl_buf_printf(out, "    %s) words=$(_sluicectl_members) ;;\n", name);
        if (!space && strchr(CTL_COMMANDS[i].words, '|'))
            sl_buf_printf(out, "    %s) words=\"bash zsh\" ;;\n", name);
    }
}

static void write_completion(sl_buf *out)
{
    sl_buf_puts(out, "# sluicectl completion for bash (and zsh, by bashcompinit); made by "
                     "`sluicectl completion`.\n"
                     "_sluicectl_members() {\n"
                     "  sluicectl --etcd-timeout 1s --call-timeout 1s version 2>/dev/null |\n"
                     "    awk 'NR > 1 {print $1}'\n"
                     "}\n"
                     "_sluicectl() {\n"
                     "  local word=${COMP_WORDS[COMP_CWORD]} first= words= i\n"
                     "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
                     "    [[ ${COMP_WORDS[i]} == --* ]] || { first=${COMP_WORDS[i]}; break; }\n"
                     "  done\n"
                     "  if [[ $word == --* ]]; then\n    words=\"");
    for (size_t i = 0; i < CTL_CONFIG_SPEC.option_count; i++)
        sl_buf_printf(out, "--%s ", CTL_CONFIG_SPEC.options[i].name);
    sl_buf_puts(out, "--config --print-config --check-config --version --help\"\n"
                     "  else case $first in\n    \"\") words=\"");
    first_words(out);
    sl_buf_puts(out, "\" ;;\n");
    second_words(out);
    sl_buf_puts(out, "  esac; fi\n"
                     "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
                     "}\n"
                     "complete -F _sluicectl sluicectl\n");
}

int ctl_completion(const ctl_options *options, const char *const *words)
{
    sl_buf out;
    bool zsh = strcmp(words[0], "zsh") == 0;
    if (!zsh && strcmp(words[0], "bash") != 0) {
        fprintf(stderr, "sluicectl: completion for %s: there is bash and zsh\n", words[0]);
        return CTL_EXIT_MISUSE;
    }
    sl_buf_init(&out, 0);
    if (zsh)
        sl_buf_puts(&out, "autoload -U +X bashcompinit && bashcompinit\n");
    write_completion(&out);
    ctl_print(&out);
    return CTL_EXIT_OK;
}

/* ---- manual page ---- */

/* A minus in roff is a hyphen unless escaped; a dot or a quote that begins a line is a request. */
static void roff(sl_buf *out, const char *text)
{
    if (*text == '.' || *text == '\'')
        sl_buf_puts(out, "\\&");
    for (; *text; text++) {
        if (*text == '-')
            sl_buf_puts(out, "\\-");
        else if (*text == '\\')
            sl_buf_puts(out, "\\e");
        else
            sl_buf_putc(out, *text);
    }
}

static void write_command(sl_buf *out, const ctl_command *command)
{
    sl_buf_puts(out, ".TP\n.B ");
    roff(out, command->name);
    if (*command->words) {
        sl_buf_puts(out, " \\fI");
        roff(out, command->words);
        sl_buf_puts(out, "\\fR");
    }
    sl_buf_putc(out, '\n');
    roff(out, command->help);
    for (size_t i = 0; command->options[i]; i++) {
        sl_buf_puts(out, i ? ", " : ". Takes \\fB");
        sl_buf_puts(out, i ? "\\fB" : "");
        roff(out, "--");
        roff(out, command->options[i]);
        sl_buf_puts(out, "\\fR");
    }
    sl_buf_puts(out, ".\n");
}

static void write_options(sl_buf *out)
{
    const char *section = "";
    for (size_t i = 0; i < CTL_CONFIG_SPEC.option_count; i++) {
        const sl_option *option = &CTL_CONFIG_SPEC.options[i];
        if (strcmp(section, option->section) != 0)
            sl_buf_printf(out, ".SS %s\n", option->section);
        section = option->section;
        sl_buf_puts(out, ".TP\n.B ");
        roff(out, "--");
        roff(out, option->name);
        sl_buf_putc(out, '\n');
        roff(out, option->help);
        if (option->default_text && *option->default_text) {
            sl_buf_puts(out, " (default ");
            roff(out, option->default_text);
            sl_buf_putc(out, ')');
        }
        sl_buf_putc(out, '\n');
    }
}

int ctl_manual(const ctl_options *options, const char *const *words)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    sl_buf_printf(&out,
                  ".TH SLUICECTL 1 \"\" \"Sluice %s\"\n.SH NAME\nsluicectl \\- %s\n.SH SYNOPSIS\n"
                  ".B sluicectl\n[\\fIoptions\\fR] \\fICOMMAND\\fR [\\fIWORD\\fR..]\n.SH "
                  "DESCRIPTION\nFinds the members of a cluster in etcd, or asks a router "
                  "(\\fB\\-\\-router\\fR), and talks to nodes and routers by gRPC.\n.SH COMMANDS\n",
                  SL_VERSION, CTL_CONFIG_SPEC.summary);
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++)
        write_command(&out, &CTL_COMMANDS[i]);
    sl_buf_puts(&out, ".SH OPTIONS\n");
    write_options(&out);
    sl_buf_puts(&out, ".SH ENVIRONMENT\nEach option is also SLUICE_<NAME>, as in SLUICE_ETCD.\n"
                      ".SH EXIT STATUS\n0: done and well. 1: not reached, not done, or something "
                      "is wrong. 2: misuse.\n");
    ctl_print(&out);
    return CTL_EXIT_OK;
}
