"""How a page of ours is laid out, as headless Chromium does it: on a phone, on a desk, in the dark and on paper."""

# Of a page: at two widths, which elements reach over its right edge (what scrolls by itself may), and where the second
# column of each table ends; on paper of 680 pixels (A4 at Chromium's own margins has 718), what is cut off; in both
# colour schemes, the least contrast of a text with what it stands on (WCAG 2.2: 4.5).
LAYOUT = """
const media = (view, wanted, replaced) => {
  for (const sheet of view.document.styleSheets)
    for (const rule of sheet.cssRules)
      if (rule.media?.mediaText.includes(wanted)) rule.media.mediaText = replaced;
};
const shown = async (page, width, look) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 800px; border: 0`;
  const loaded = new Promise((done) => frame.onload = done);
  frame.src = page;
  document.body.append(frame);
  await loaded;
  const found = look(frame.contentWindow, [...frame.contentWindow.document.querySelectorAll("body *")]);
  frame.remove();
  return found;
};
const over = (view, all) => all.filter((one) => one.getBoundingClientRect().right > view.innerWidth + 1)
  .map((one) => one.tagName + ": " + one.textContent.trim().slice(0, 40));
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255)
    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const texts = "p, th, td, h1, h2, h3, dt, dd, li, code, figcaption";
const contrast = (view, all) => Math.min(...all.filter((one) => one.matches(texts)).map((one) => {
  let at = one, ground;
  do {
    ground = view.getComputedStyle(at).backgroundColor;
    at = at.parentElement;
  } while (at && /, 0\\)$/.test(ground));
  const [high, low] = [view.getComputedStyle(one).color, ground].map(light).sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}));
export default async function (page) {
  const found = { over: {}, second: {}, contrast: {} };
  for (const width of [390, 1280])
    [found.over[width], found.second[width], found.contrast.light] = await shown(page, width, (view, all) => [
      over(view, all.filter((one) => !one.parentElement.closest(".scroll, pre"))),
      all.filter((one) => one.matches("tbody")).map((one) => one.querySelector("td").getBoundingClientRect().right),
      contrast(view, all)]);
  found.paper = await shown(page, 680, (view, all) => {
    media(view, "print", "all");
    return [...over(view, all), ...all.filter((one) => one.matches(".scroll, pre") && one.scrollWidth > one.clientWidth)
      .map((one) => "cut off: " + one.textContent.trim().slice(0, 40))];
  });
  [found.contrast.dark, found.dark] = await shown(page, 1280, (view, all) => {
    const ground = () => view.getComputedStyle(view.document.body).backgroundColor;
    const day = ground();
    media(view, "dark", "all");
    return [contrast(view, all), day !== ground()];
  });
  return found;
}
"""


def check_layout(run_in_browser, page):
    """Nothing of a page is out of sight, and everything can be read, wherever it is shown.

    Args:
        run_in_browser: the fixture of that name.
        page: path of an HTML file.
    """
    found, asked, _ = run_in_browser(page.parent, LAYOUT, page.name)
    assert set(asked) <= {page.name, "/favicon.ico"}
    assert found["over"] == {"390": [], "1280": []} and found["paper"] == [], found
    # On a phone the names leave room for the first scores.
    assert found["second"]["390"] and max(found["second"]["390"]) < 390, found["second"]
    assert found["dark"] and min(found["contrast"].values()) >= 4.5, found["contrast"]
