// Language and theme: they follow the browser until the reader chooses, and the choice is kept.

export type Language = "en" | "zh";
export type Theme = "light" | "dark";

const system = matchMedia("(prefers-color-scheme: dark)");

function stored(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // storage switched off: the choice lasts as long as the page
  }
}

function store(name: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // as above
  }
}

class Preferences {
  language = $state<Language>("en");
  systemTheme = $state<Theme>("light");
  chosenTheme = $state<Theme | null>(null);

  constructor() {
    const language = stored("modelworks.language");
    this.language = language === "en" || language === "zh" ? language : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
    const theme = stored("modelworks.theme");
    this.chosenTheme = theme === "light" || theme === "dark" ? theme : null;
    this.systemTheme = system.matches ? "dark" : "light";
    system.addEventListener("change", () => (this.systemTheme = system.matches ? "dark" : "light"));
  }

  get theme(): Theme {
    return this.chosenTheme ?? this.systemTheme;
  }

  /** The other theme; choosing the system's own one means following the system again. */
  toggleTheme(): void {
    const next: Theme = this.theme === "dark" ? "light" : "dark";
    this.chosenTheme = next === this.systemTheme ? null : next;
    store("modelworks.theme", this.chosenTheme);
  }

  toggleLanguage(): void {
    this.language = this.language === "en" ? "zh" : "en";
    store("modelworks.language", this.language);
  }

  /** Puts both on the document; call inside an effect. */
  apply(): void {
    const root = document.documentElement;
    root.lang = this.language === "zh" ? "zh-CN" : "en";
    if (this.chosenTheme) root.dataset.theme = this.chosenTheme;
    else delete root.dataset.theme;
  }
}

export const preferences = new Preferences();
