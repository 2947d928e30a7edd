// Each page is for everybody: with a screen reader, by keyboard, without scripts, in light and dark, on a narrow screen.
import AxeBuilder from '@axe-core/playwright';
import { test, expect, PAGES } from '../console_page.js';

for (const colorScheme of ['light', 'dark']) {
  test.describe(`in ${colorScheme}`, () => {
    test.use({ colorScheme });
    for (const [path, heading] of PAGES) {
      test(`axe finds nothing on ${path}`, async ({ page }) => {
        await page.goto(path);
        await expect(page.getByRole('heading', { level: 1 })).toHaveCount(1);
        await expect(page.getByRole('heading', { level: 1 })).toContainText(heading);
        const found = await new AxeBuilder({ page }).analyze();
        expect(found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`)).toEqual([]);
      });
    }
  });
}

for (const width of [320, 768, 1920]) {
  test.describe(`at ${width} pixels`, () => {
    test.use({ viewport: { width, height: 800 } });
    for (const [path] of PAGES) {
      test(`${path} does not scroll sideways`, async ({ page }) => {
        await page.goto(path);
        const size = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
        expect(size[0]).toBeLessThanOrEqual(size[1]);
      });
    }
  });
}

test.describe('without scripts', () => {
  test.use({ javaScriptEnabled: false });
  for (const [path, heading] of PAGES) {
    test(`${path} is complete`, async ({ page }) => {
      await page.goto(path);
      await expect(page.getByRole('heading', { level: 1 })).toContainText(heading);
      await expect(page.getByRole('navigation').getByRole('link', { name: 'Pipeline' })).toBeVisible();
      await expect(page.locator('main')).not.toBeEmpty();
    });
  }
});

test('the first Tab leads past the navigation', async ({ page }) => {
  await page.goto('/');
  await page.keyboard.press('Tab');
  const skip = page.getByRole('link', { name: /skip to/i });
  await expect(skip).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.locator('main')).toBeFocused();
});

test('a page is small', async ({ page }) => {
  for (const [path] of PAGES) {
    let bytes = 0;
    const answered = [];
    page.on('requestfinished', (request) => answered.push(request.sizes().then((sizes) => sizes.responseBodySize)));
    await page.goto(path, { waitUntil: 'load' });
    for (const size of await Promise.all(answered)) bytes += size;
    page.removeAllListeners('requestfinished');
    expect(bytes, path).toBeGreaterThan(0);
    expect(bytes, `${path} in bytes, compressed`).toBeLessThanOrEqual(100_000);
  }
});
